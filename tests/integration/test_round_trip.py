"""A pretrained checkpoint of every family: in, adapted, evaluated, out again, and read by this package and another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recyclegpt.checkpoints.load import load_trained
from recyclegpt.decoding import Autoregressive, Decoder, Verified
from recyclegpt.models import RecycleGPT

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "architecture",
    [
        "LlamaForCausalLM",
        pytest.param("MistralForCausalLM", marks=pytest.mark.slow),
        "Qwen2ForCausalLM",
        pytest.param("Qwen3ForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_in_adapted_evaluated_out_and_in_again(
    architecture: str,
    corpus: Path,
    run: Callable[..., int],
    tiny_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_checkpoint(architecture)
    quick = ["debug=smoke_pretrained", "data=text_files", f"data.paths=[{corpus}]", "callbacks=no_monitor"]
    quick += ["model.context_length=160"]  # as an exported folder is evaluated: at the length of its backbone
    quick += ["recycle.draft_vocab=265", "loss.target=distill", "~callbacks.trade_off"]
    assert run("adapt", f"model.path={folder}", *quick, "hydra.run.dir=run") == 0
    model = load_trained("run").model
    tokens_BT = torch.randint(300, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = model.states(torch.stack([tokens_BT, tokens_BT.roll(-1, 1)]))
    capsys.readouterr()

    def evaluated(checkpoint: str, *overrides: str) -> dict[str, float]:
        assert run("evaluate", f"checkpoint={checkpoint}", "dtype=float32", *overrides) == 0
        found: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
        return found

    whole_text = ["data=text_files", f"data.paths=[{corpus / 'part00.txt'}]"]
    before = evaluated("run", *whole_text)

    # All of it, through both doors of one folder.
    assert run("export", "checkpoint=run", "output_dir=whole") == 0
    again = RecycleGPT.from_pretrained("whole").eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained("whole", trust_remote_code=True)
    with torch.no_grad():
        read = again.states(torch.stack([tokens_BT, tokens_BT.roll(-1, 1)]))
        logits = theirs(tokens_BT).logits
    assert model.draft_ids is not None
    assert not torch.equal(model.draft_ids, torch.arange(265))
    for same in (again, load_trained("whole").model, theirs.core):
        assert torch.equal(same.draft_ids, model.draft_ids)
    assert torch.equal(read.hidden_BTC, states.hidden_BTC)
    assert torch.equal(read.recycled_KBTC[0], states.recycled_KBTC[0])
    assert torch.equal(logits, model.logits(states.hidden_BTC))
    capsys.readouterr()
    assert evaluated("whole", *whole_text) == pytest.approx(before)

    # The backbone alone, byte for byte what came in, and read by every command as it is.
    assert run("export", "checkpoint=run", "format=llama", "output_dir=backbone") == 0
    came, went = load_file(folder / "model.safetensors"), load_file("backbone/model.safetensors")
    assert came.keys() == went.keys()
    assert all(torch.equal(came[name], went[name]) for name in came)
    plain = transformers.AutoModelForCausalLM.from_pretrained("backbone").eval()
    prompt = tokens_BT[:, :10]
    text = plain.double().generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40, pad_token_id=0
    )
    capsys.readouterr()
    assert evaluated("backbone", *whole_text)["val/loss_backbone"] == pytest.approx(before["val/loss_backbone"])
    decoder = Decoder(model.double())
    for strategy in (Autoregressive(), Verified(1)):
        written = decoder.generate([prompt[0].tolist()], strategy, 40, stop_tokens=[0]).tokens[0]
        assert written == text[0, 10 : 10 + len(written)].tolist()

    # The module alone, for a serving engine.
    assert run("export", "checkpoint=run", "format=vllm", "output_dir=draft", "target=backbone") == 0
    draft = load_file("draft/model.safetensors")
    assert torch.equal(draft["model.fc.weight"], model.recyclable.fc.weight.float())  # type: ignore[union-attr]
    assert not any("embed" in name or "lm_head" in name or "draft_ids" in name for name in draft)
