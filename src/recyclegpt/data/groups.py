"""What `conf/data/*.yaml` builds: one flat group of settings for a source and the data module around it.

So `data.paths` and `data.batch_size` stand side by side on the command line, and both are checked by name and type.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from recyclegpt.data.datamodule import TextDataModule
from recyclegpt.data.hf_stream import HFStream
from recyclegpt.data.stdlib import PythonStdlib
from recyclegpt.data.text_files import TextFiles
from recyclegpt.data.tokenized import Tokenized


def _flat(name: str, source: type[Any], left_out: tuple[str, ...] = ()) -> Callable[..., TextDataModule]:
    """A function with the parameters of `source` and of `TextDataModule`, which builds the one around the other."""
    own = inspect.signature(source).parameters
    shared = {
        key: parameter
        for key, parameter in inspect.signature(TextDataModule).parameters.items()
        if key not in ("source", *left_out)
    }

    def build(**settings: Any) -> TextDataModule:
        unknown = settings.keys() - own.keys() - shared.keys()
        if unknown:
            raise TypeError(f"{name}() got unexpected keyword arguments: {', '.join(sorted(unknown))}")
        rest = {key: value for key, value in settings.items() if key not in own}
        rest.update(dict.fromkeys(left_out))
        return TextDataModule(source(**{key: settings[key] for key in own if key in settings}), **rest)

    hints = {**typing.get_type_hints(TextDataModule.__init__), **typing.get_type_hints(source.__init__)}
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[key])
        for key, parameter in {**own, **shared}.items()
    ]
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"A `TextDataModule` around `{source.__name__}`; takes the settings of both."
    build.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {
        "return": TextDataModule
    }
    build.__signature__ = inspect.Signature(parameters, return_annotation=TextDataModule)  # type: ignore[attr-defined]
    return build


python_stdlib_data = _flat("python_stdlib_data", PythonStdlib)
text_files_data = _flat("text_files_data", TextFiles)
hf_stream_data = _flat("hf_stream_data", HFStream)
tokenized_data = _flat("tokenized_data", Tokenized, left_out=("tokenizer",))
