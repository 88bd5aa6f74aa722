"""A fused model computes what the model computes, and decodes exactly in every number format."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recyclegpt import kernels
from recyclegpt.decoding import Alternating, Autoregressive, Decoder, SamplingConfig, Verified, cpu_layers, fuse
from recyclegpt.decoding.session import Session
from recyclegpt.errors import ConfigError
from recyclegpt.models import KVCache, ModelConfig, RecycleConfig, RecycleGPT, RopeScaling

from .test_exactness import random_model

HAS_KERNELS = kernels.usable(torch.device("cpu"), torch.float32)
YARN = RopeScaling("yarn", factor=4.0, original_context=24, attention_factor=1.1)
VARIANTS = {
    "plain": (ModelConfig(37, 96, 2, 32, 4), RecycleConfig(2)),
    "grouped heads, untied": (ModelConfig(37, 96, 2, 32, 4, num_kv_heads=2, tie_embeddings=False), RecycleConfig(1)),
    "both inputs normed": (ModelConfig(37, 96, 1, 48, 3), RecycleConfig(1, norm_inputs=True)),
    "EAGLE": (ModelConfig(37, 96, 1, 32, 2), RecycleConfig(1, final_norm=False, first_input_norm=False)),
    "no module": (ModelConfig(16, 96, 2, 32, 4, head_dim=6), None),
    "draft vocabulary": (ModelConfig(37, 96, 1, 32, 4), RecycleConfig(1, draft_vocab=11)),
    "Qwen2's biases": (ModelConfig(37, 96, 2, 32, 4, num_kv_heads=2, qkv_bias=True), RecycleConfig(1)),
    "Qwen3's norms": (ModelConfig(37, 96, 2, 32, 4, head_dim=6, qk_norm=True), RecycleConfig(1)),
    "all biases, stretched": (
        ModelConfig(37, 96, 1, 32, 4, qkv_bias=True, o_bias=True, mlp_bias=True, rope_scaling=YARN),
        RecycleConfig(1),
    ),
}


def made(config: ModelConfig, recycle: RecycleConfig | None) -> RecycleGPT:
    torch.manual_seed(0)
    model = RecycleGPT(config, recycle).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else torch.nn.init.uniform_(parameter, 0.5, 1.5)
    if model.draft_ids is not None:
        model.draft_ids.mul_(3)
    return model


@torch.no_grad()
def outputs(model: RecycleGPT, tokens_BT: Tensor, prefill: int) -> Tensor:
    """Logits of both kinds: a prompt, then single tokens and pairs through the caches."""
    cache = KVCache(model.config, model.config.num_layers, len(tokens_BT), 60, model.dtype)
    module_cache = KVCache(model.config, model.recycle_config.num_layers, len(tokens_BT), 60, model.dtype)
    logits = []
    begin, width = 0, prefill
    while begin + width < tokens_BT.shape[1]:
        positions = torch.arange(begin, begin + width).expand(len(tokens_BT), -1)
        hidden = model.backbone_states(tokens_BT[:, begin : begin + width], positions, cache=cache)
        logits.append(model.logits(hidden).flatten(1))
        if model.recyclable is not None:
            following = tokens_BT[:, begin + 1 : begin + width + 1]
            recycled = model.recycle(following, hidden, positions, cache=module_cache)
            logits.append(model.draft_logits(recycled).flatten(1))
        begin, width = begin + width, 1 + len(logits) % 3
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prefill", [3, 16, 17])
def test_fused_equals_plain(variant: str, prefill: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layers, "KERNEL_QUERIES", 16)  # so that 17 is a long prompt
    model = made(*VARIANTS[variant])
    tokens = torch.randint(model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    exact = outputs(model.double(), tokens, prefill)
    torch.testing.assert_close(outputs(fuse(model), tokens, prefill), exact, rtol=1e-10, atol=1e-10)
    model.float()
    for use_kernels in (True, False):
        single = outputs(fuse(model, use_kernels=use_kernels), tokens, prefill)
        assert float((single.double() - exact).norm() / exact.norm()) < 1e-5
        half = outputs(fuse(model, torch.bfloat16, use_kernels), tokens, prefill)
        # bf16 has eight bits: a few hundredths of the logits' size after some layers
        assert float((half.double() - exact).norm() / exact.norm()) < 0.03


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_one_call_for_all_layers_has_the_bits_of_one_call_an_operator(variant: str, dtype: torch.dtype) -> None:
    model = made(*VARIANTS[variant]).float()
    tokens = torch.randint(model.config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    fused = fuse(model, dtype)
    assert isinstance(fused, cpu_layers.KernelGPT)
    found = outputs(fused, tokens, 17)
    assert "_backbone_calls" in vars(fused)
    fused.in_one_call = False
    assert torch.equal(found, outputs(fused, tokens, 17))
    if fused.recyclable is None:
        return
    texts, prompts = [], tokens[:, :6].tolist()
    for fused.in_one_call in (True, False):
        pair = [Decoder(fused).generate(prompts, Alternating(4, threshold), 30) for threshold in (0.0, 0.05)]
        texts.append([(one.tokens, one.drafted, one.counts) for one in pair])
    assert texts[0] == texts[1]


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
def test_a_copy_of_a_used_model_reads_its_own_weights() -> None:
    """Also a saved one: addresses are good for one model in one process."""
    fused, tokens = fuse(made(*VARIANTS["plain"])), torch.arange(20)[None]
    expected = outputs(fused, tokens, 4)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    copies = [copy.deepcopy(fused), torch.load(file, weights_only=False), copy.deepcopy(fused).to("cpu")]
    for buffer in fused.buffers():
        buffer.zero_()
    for one in copies:
        assert torch.equal(outputs(one, tokens, 4), expected)
    cache = KVCache(fused.config, 2, 1, 8, torch.float32)
    its = cache.addresses
    assert not torch.isin(copy.deepcopy(cache).addresses, its).any()
    with pytest.raises(TypeError, match="fuse the model in that dtype"):
        copies[0].bfloat16()


@torch.no_grad()
@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
@pytest.mark.parametrize("in_one_call", [True, False])
def test_a_cache_that_does_not_fit_is_refused(in_one_call: bool) -> None:
    fused = fuse(made(*VARIANTS["plain"]))
    assert isinstance(fused, cpu_layers.KernelGPT)
    fused.in_one_call = in_one_call
    tokens, positions = torch.arange(4).view(2, 2), torch.arange(2).expand(2, 2)
    for batch, dtype in ((2, torch.bfloat16), (1, torch.float32)):
        with pytest.raises((ValueError, RuntimeError), match="another dtype"):
            fused.backbone_states(tokens, positions, cache=KVCache(fused.config, 2, batch, 9, dtype))
    for start in (-1, 8):
        with pytest.raises(RuntimeError, match="outside the KV cache"):
            fused.backbone_states(tokens, positions + start, cache=KVCache(fused.config, 2, 2, 9, torch.float32))


def test_a_long_prompt_is_read_alike_by_every_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's attention rounds by how many slots it reads, so that number may not depend on what is drafted."""
    torch.manual_seed(0)
    model = RecycleGPT(ModelConfig(37, 600, 2, 48, 4, num_kv_heads=2), RecycleConfig(1)).eval()
    decoder, prompts, read = Decoder.optimised(model), torch.randint(37, (1, 318)).tolist(), []
    prefill = Session.prefill

    def watched(session: Session, *arguments: Any) -> None:
        prefill(session, *arguments)
        read.append(session.cache.keys[-1][:, :, :318].clone())

    monkeypatch.setattr(Session, "prefill", watched)
    for strategy in (Autoregressive(), Verified(4)):
        decoder.generate(prompts, strategy, 10)
    assert torch.equal(*read)


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
def test_threads_that_share_a_core_decode_the_same_text() -> None:
    """A team of more threads than cores, beside another team."""
    decoder = Decoder.optimised(made(*VARIANTS["plain"]), torch.bfloat16)
    expected = decoder.generate([[1, 2, 3]], Verified(2), 40).tokens
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(7)
        with ThreadPoolExecutor(2) as pool:
            decoders = [Decoder.optimised(made(*VARIANTS["plain"]), torch.bfloat16) for _ in range(2)]
            found = list(pool.map(lambda one: one.generate([[1, 2, 3]], Verified(2), 40).tokens, decoders))
    finally:
        torch.set_num_threads(threads)
    assert found == [expected, expected]


@torch.no_grad()
def outputs_without_a_cache(model: RecycleGPT, tokens_BT: Tensor) -> Tensor:
    """The same of whole rows, causal and with a window of five tokens."""
    window_TT = torch.ones(tokens_BT.shape[1], tokens_BT.shape[1], dtype=torch.bool).tril().triu(-4)
    logits = []
    for mask in (None, window_TT):
        hidden = model.backbone_states(tokens_BT, mask=mask)
        logits.append(model.logits(hidden).flatten(1))
        if model.recyclable is not None:
            logits.append(model.draft_logits(model.recycle(tokens_BT.roll(-1, 1), hidden, mask=mask)).flatten(1))
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_cache_too(variant: str) -> None:
    model = made(*VARIANTS[variant])
    tokens = torch.randint(model.config.vocab_size, (2, 30))
    exact = outputs_without_a_cache(model.double(), tokens)
    torch.testing.assert_close(outputs_without_a_cache(fuse(model), tokens), exact, rtol=1e-10, atol=1e-10)
    for use_kernels in (True, False):
        single = outputs_without_a_cache(fuse(model.float(), use_kernels=use_kernels), tokens)
        assert float((single.double() - exact).norm() / exact.norm()) < 1e-5


def test_a_copy_shares_nothing_with_training() -> None:
    model = made(*VARIANTS["plain"])
    fused = fuse(model)
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert not own & {tensor.data_ptr() for tensor in [*fused.parameters(), *fused.buffers()]}
    tokens = torch.randint(37, (1, 20))
    before = outputs(fused, tokens, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(outputs(fused, tokens, 4), before)


def test_release_frees_the_original_as_it_goes() -> None:
    model = made(*VARIANTS["grouped heads, untied"])
    expected = outputs(fuse(model), torch.arange(20)[None], 4)
    released = fuse(model, release=True)
    assert torch.equal(outputs(released, torch.arange(20)[None], 4), expected)
    assert model.recyclable is not None
    for part in (model.backbone.layers, model.recyclable):
        products = [module for module in part.modules() if isinstance(module, torch.nn.Linear)]
        assert products
        assert not any(product.weight.numel() for product in products)


def test_rotations_stay_in_fp32() -> None:
    model = made(*VARIANTS["plain"])
    exact = model.rotary.cos_SD.clone()
    for original in (model, model.bfloat16()):
        assert torch.equal(fuse(original, torch.bfloat16).rotary.cos_SD, exact)


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
def test_int8_weights() -> None:
    model = made(*VARIANTS["plain"])
    tokens = torch.randint(37, (2, 40))
    exact, found = outputs(model.double(), tokens, 5), outputs(fuse(model.float(), torch.int8), tokens, 5)
    # A step is a 127th of an output's largest weight: most of a percent of a weight, three layers deep.
    assert float((found.double() - exact).norm() / exact.norm()) < 0.08
    half, drafted = (outputs(fuse(model, torch.bfloat16, draft_dtype=kind), tokens, 5) for kind in (None, torch.int8))
    same = half == drafted
    assert same[:, : 5 * 37].all(), "the backbone's weights are not in int8"
    assert not same.all()
    assert float((drafted.double() - exact).norm() / exact.norm()) < 0.08
    for kind in ({"dtype": torch.int8}, {"draft_dtype": torch.int8}):
        with pytest.raises(ConfigError, match=f"{next(iter(kind))}: int8"):
            fuse(model, use_kernels=False, **kind)


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    num_recycled=st.integers(1, 8),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.int8]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    stops=st.sets(st.integers(0, 22), max_size=1),
    draft_vocab=st.sampled_from([None, 9]),
    draft_dtype=st.sampled_from([None, torch.int8]),
)
def test_verified_equals_autoregressive_in_every_format(
    seed: int,
    num_recycled: int,
    dtype: torch.dtype,
    lengths: list[int],
    stops: set[int],
    draft_vocab: int | None,
    draft_dtype: torch.dtype | None,
) -> None:
    """Not within a tolerance: the kernels' results do not depend on how many tokens a pass reads."""
    model = random_model(seed, 1, draft_vocab=draft_vocab).float()
    decoder = Decoder.optimised(model, dtype, draft_dtype=draft_dtype)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(23, (length,), generator=generator).tolist() for length in lengths]
    plain = decoder.generate(prompts, Autoregressive(), 40, stop_tokens=list(stops))
    exact = decoder.generate(prompts, Verified(num_recycled), 40, stop_tokens=list(stops))
    assert exact.tokens == plain.tokens
    assert exact.finish == plain.finish
    for row, prompt in enumerate(prompts):
        alone = decoder.generate([prompt], Alternating(num_recycled), 12, stop_tokens=list(stops))
        together = decoder.generate(prompts, Alternating(num_recycled), 12, stop_tokens=list(stops))
        assert together.tokens[row] == alone.tokens[0]


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    num_recycled=st.integers(1, 8),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.int8]),
    hidden_size=st.sampled_from([16, 24, 34]),
    head_dim=st.sampled_from([4, 6, 16, 24]),
    grouped=st.booleans(),
    tied=st.booleans(),
    penalty=st.sampled_from([0.8, 1.0, 1.4]),
    confidence=st.sampled_from([0.0, 0.4]),
)
def test_whole_contexts_of_any_shape(
    seed: int,
    num_recycled: int,
    dtype: torch.dtype,
    hidden_size: int,
    head_dim: int,
    grouped: bool,
    tied: bool,
    penalty: float,
    confidence: float,
) -> None:
    """Past the first bucket of slots, up to the end of the context, where proposals stand beyond it."""
    kv_heads = 1 if grouped else 2
    config = ModelConfig(23, 80, 1, hidden_size, 2, kv_heads, head_dim, tie_embeddings=tied)
    model = made(config, RecycleConfig(1, norm_inputs=tied))
    decoder = Decoder.optimised(model, dtype)
    prompts = [[seed % 23], list(range(9)), [22] * 16]
    greedy = SamplingConfig(repetition_penalty=penalty)
    plain = decoder.generate(prompts, Autoregressive(), 100, greedy)
    exact = decoder.generate(prompts, Verified(num_recycled, confidence), 100, greedy)
    assert exact.tokens == plain.tokens
    assert exact.finish == plain.finish == ["context"] * 3
    assert [len(prompt) + len(text) for prompt, text in zip(prompts, plain.tokens, strict=True)] == [80] * 3
    sampled = SamplingConfig(1.0, top_p=0.9, min_p=0.02, repetition_penalty=penalty)
    for strategy in (Alternating(num_recycled, confidence), Verified(num_recycled, confidence)):
        together = decoder.generate(prompts, strategy, 30, sampled, seed=seed)
        for row, prompt in enumerate(prompts):
            assert decoder.generate([prompt], strategy, 30, sampled, seed=seed + row).tokens[0] == together.tokens[row]


@pytest.mark.parametrize("use_kernels", [True, False])
def test_the_text_of_a_fused_model_is_the_models(use_kernels: bool) -> None:
    """Rows at different positions, which the logits above do not see."""
    prompts = [[1, 2, 3], [4], list(range(20))]
    for seed in range(6):
        model = random_model(seed)
        for strategy in (Autoregressive(), Alternating(3), Verified(2)):
            expected = Decoder(model.double()).generate(prompts, strategy, 25)
            found = Decoder.optimised(model.float(), use_kernels=use_kernels).generate(prompts, strategy, 25)
            assert found.tokens == expected.tokens
            assert found.counts == expected.counts


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
def test_rows_equal_the_row_alone_beside_long_prompts() -> None:
    prompts = [[3, 1, 4], list(range(23)), [5] * 16, [6, 7] * 20]
    for seed in range(20):
        decoder = Decoder.optimised(random_model(seed).float(), torch.bfloat16)
        together = decoder.generate(prompts, Alternating(3), 30)
        for row, prompt in enumerate(prompts):
            assert decoder.generate([prompt], Alternating(3), 30).tokens[0] == together.tokens[row]


@pytest.mark.skipif(not HAS_KERNELS, reason="there is no C++ compiler here")
@torch.no_grad()
def test_states_need_not_be_contiguous() -> None:
    model = made(*VARIANTS["plain"])
    hidden = model.backbone_states(torch.randint(37, (2, 5)))
    fused = fuse(model)
    assert torch.equal(fused.logits(hidden[:, -1]), fused.logits(hidden)[:, -1])
    assert torch.equal(fused.backbone.norm(hidden[:, -1]), fused.backbone.norm(hidden)[:, -1])


def test_compiled_passes_write_the_same_text() -> None:
    model = random_model(3).float()
    sampling = SamplingConfig(temperature=0.7)
    texts = [
        Decoder.optimised(model, compile=compiled).generate([[1, 2, 3]], Verified(2), 12, sampling, seed=5).tokens
        for compiled in (False, True)
    ]
    assert texts[0] == texts[1]
