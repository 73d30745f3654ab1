"""Reuse of blocks: the policies, and whole runs against Diffusers' own first-block cache."""

import copy
import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
import ttnn
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import first_block_cache
from hypothesis import given
from hypothesis import strategies as st

from models.machine.errors import InputError
from models.mochi.sampling.branches import GuidanceParallel
from models.mochi.sampling.denoise import GuideByScale, ReuseUnconditional, denoise
from models.mochi.sampling.reuse import (
    Blocks,
    Decisions,
    Forwards,
    ReuseBelow,
    ReuseSteps,
    check_reused,
    nothing_fresh,
    planned,
)
from models.mochi.transformer import MochiTransformer
from models.parallel import Halves, Layout, Mesh, Replay
from models.reference.metrics import relative_rmse
from models.reference.transformer import random_transformer
from tests.support import SMALL, StateDict, check, config_of, randn

SIGMAS = [1.0, 0.97, 0.94, 0.7, 0.68, 0.4, 0.0]
STEPS = len(SIGMAS) - 1
SIZES = SMALL | {"num_attention_heads": 4, "num_layers": 3}


@functools.cache
def calm(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A random transformer whose blocks change slowly from step to step, as those of a trained one do."""
    model = random_transformer(**SIZES)
    with torch.no_grad():
        model.time_embed.timestep_embedder.linear_2.weight *= 0.1
    return model.to(dtype)


def prompts() -> dict:
    """A prompt of 9 tokens, and a negative one of 4."""
    made = {}
    for name, length, seed in (("prompt", 9, 2), ("negative", 4, 3)):
        made[name] = (randn(1, length, SMALL["text_embed_dim"], seed=seed), torch.ones(1, length, dtype=torch.bool))
    return made


def loaded(mesh: Mesh) -> MochiTransformer:
    model = calm()
    ours = MochiTransformer(config_of(model), mesh)
    ours.load(StateDict(model))
    return ours


def run(model, latents, reuse, *, guidance=None, sigmas=SIGMAS, **more):
    """Ours: the latents, and what each step did."""
    done = Forwards()
    scales = [4.5] * (len(sigmas) - 1) if guidance is None else guidance
    made = denoise(model, latents, sigmas=sigmas, guidance=scales, reuse=reuse, forwards=done, **prompts(), **more)
    return made, done


@dataclass
class Cached:
    """What Diffusers' transformer with its hook gives: latents, reused steps, and the change seen in each step."""

    latents: torch.Tensor
    reused: list[int]
    changes: list[float]


def diffusers_run(latents, threshold, guidance, dtype, monkeypatch, sigmas=SIGMAS) -> Cached:
    """Both branches in one batch and one cache context, as Diffusers' `MochiPipeline` runs them."""
    model = copy.deepcopy(calm(dtype))
    model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    changes, decided = [], []
    original = first_block_cache.FBCHeadBlockHook._should_compute_remaining_blocks

    def decide(self, residual):
        last = self.state_manager.get_state().head_block_residual
        changes.append(float("inf") if last is None else float((residual - last).abs().mean() / last.abs().mean()))
        decided.append(original(self, residual))
        return decided[-1]

    monkeypatch.setattr(first_block_cache.FBCHeadBlockHook, "_should_compute_remaining_blocks", decide)
    given = prompts()
    pairs = [given["prompt"]] if guidance == 1 else [given["negative"], given["prompt"]]
    length = max(features.shape[1] for features, _ in pairs)
    features, mask = (
        torch.cat([torch.nn.functional.pad(part, (*pad, 0, length - part.shape[1])) for part in parts])
        for parts, pad in zip(zip(*pairs, strict=True), ((0, 0), ()), strict=True)
    )
    state = latents.clone()
    for now, after in itertools.pairwise(sigmas):
        batch = torch.cat([state] * len(pairs))
        time = torch.full((len(pairs),), (1 - now) * 1000)
        with torch.no_grad(), model.cache_context("cond_uncond"):
            velocity = model(batch.to(dtype), features.to(dtype), time.to(dtype), mask).sample.float()
        if len(pairs) == 2:
            without, with_ = velocity.chunk(2)
            velocity = without + guidance * (with_ - without)
        state = state + (now - after) * velocity
    monkeypatch.undo()
    return Cached(state, [index for index, computed in enumerate(decided) if not computed], changes)


@functools.cache
def reference_run(rows: int, threshold: float, guidance: float, dtype: torch.dtype) -> Cached:
    """The same for several meshes; latents of one shape are the same noise."""
    with pytest.MonkeyPatch.context() as patch:
        return diffusers_run(noise(rows), threshold, guidance, dtype, patch)


def noise(rows: int) -> torch.Tensor:
    """Latents of 2 x rows / 2 x 5 patches: 30 or 70 tokens, no multiple of 32."""
    return randn(1, 12, 2, rows, 10, seed=1)


# Rows, guidance, threshold: at least two steps are reused and two computed, and no change is near the threshold.
CASES = {"guided": (14, 4.5, 0.4), "alone": (14, 1.0, 0.25), "small": (6, 4.5, 0.42)}


def check_against_diffusers(case: str, model: MochiTransformer, **more) -> None:
    rows, guidance, threshold = CASES[case]
    expected = reference_run(rows, threshold, guidance, torch.float32)
    assert 2 <= len(expected.reused) <= STEPS - 2
    assert all(abs(change / threshold - 1) > 0.02 for change in expected.changes), expected.changes
    # Diffusers computes no step by rule but the first one.
    made, done = run(model, noise(rows), ReuseBelow(threshold, frozenset({0})), guidance=[guidance] * STEPS, **more)
    assert done.reused == expected.reused
    check(made - noise(rows), expected.latents - noise(rows), None, min_pcc=0.9995, max_rmse=0.03)


WIDE = [
    pytest.param(layout, case, marks=[] if (layout, case) in quick else pytest.mark.full)
    for quick in [{("1x1sp0tp1", "guided"), ("2x4sp0tp1", "alone"), ("2x4sp1tp0", "alone")}]
    for layout in ("1x1sp0tp1", "2x4sp0tp1", "2x4sp1tp0", "1x4sp0tp1")
    for case in CASES
]


@pytest.mark.parametrize(("mesh", "case"), WIDE, indirect=["mesh"])
def test_the_steps_and_latents_are_those_of_diffusers_cache(mesh, case):
    check_against_diffusers(case, loaded(mesh))


@pytest.fixture
def halves(request, open_layout):
    """The halves of a mesh, by layout."""
    layout = Layout.parse(request.param)
    rows, columns = layout.mesh_shape
    made = Halves(open_layout(f"{rows}x{columns}sp0tp1").device, layout)
    yield made
    made.release()


@pytest.mark.alone
@pytest.mark.parametrize(
    ("halves", "case"),
    [
        ("1x2cfg1sp0tp1", "guided"),
        pytest.param("1x2cfg1sp0tp1", "small", marks=pytest.mark.full),
        pytest.param("2x4cfg0sp0tp1", "guided", marks=pytest.mark.full),
    ],
    indirect=["halves"],
)
def test_halves_decide_together_as_diffusers_does(halves, case):
    parallel = GuidanceParallel(halves, loaded(halves.unconditional))
    check_against_diffusers(case, loaded(halves.conditional), parallel=parallel)


SHORT = [1.0, 0.99, 0.98, 0.4, 0.0]


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_off_is_as_without_and_a_threshold_of_nothing_computes_the_same(mesh):
    """Bit for bit; a policy that reuses nothing adds to the ops of a step and changes none of its numbers."""
    model = loaded(mesh)
    plain, done = run(model, noise(6), None, sigmas=SHORT)
    assert done.to_json() == {
        "conditional": {"computed": 4, "reused": 0},
        "unconditional": {"computed": 4, "reused": 0},
        "reused_steps": [],
    }
    for policy in (ReuseBelow.of(0.0, 4), ReuseSteps(frozenset())):
        made, done = run(model, noise(6), policy, sigmas=SHORT)
        assert torch.equal(made, plain)
        assert done.reused == []


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
def test_a_list_reuses_the_same_as_a_threshold_that_chose_it(mesh, monkeypatch):
    """Guidance is off in step 1: there only the conditional branch is reused. A list reads nothing in the loop."""
    model, scales = loaded(mesh), [4.5, 1.0, 4.5, 4.5]
    reads = []
    original = Mesh.read
    monkeypatch.setattr(Mesh, "read", lambda self, tensor: reads.append(1) or original(self, tensor))
    chosen, by_threshold = run(model, noise(6), ReuseBelow.of(0.5, 4), sigmas=SHORT, guidance=scales)
    assert by_threshold.reused == [1, 2]
    assert len(reads) == 2, "one read for each step that compares, guided or not"
    listed, by_list = run(model, noise(6), ReuseSteps(frozenset({1, 2})), sigmas=SHORT, guidance=scales)
    assert torch.equal(listed, chosen)
    assert len(reads) == 2
    assert (
        by_list.to_json()
        == by_threshold.to_json()
        == {
            "conditional": {"computed": 2, "reused": 2},
            "unconditional": {"computed": 2, "reused": 1},
            "reused_steps": [1, 2],
        }
    )


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
@pytest.mark.parametrize("policy", [ReuseBelow.of(0.5, 6), ReuseSteps(frozenset({1, 2, 4}))])
def test_captured_programs_make_the_same_latents(mesh, monkeypatch, policy):
    """Each program is recorded at its second call and then replayed: here by running the recorded Python again."""
    model, sigmas = loaded(mesh), [1.0, 0.99, 0.98, 0.7, 0.69, 0.3, 0.0]
    alone = {"sigmas": sigmas, "guidance": [1.0] * 6}
    expected, done = run(model, noise(6), policy, **alone)
    assert len(done.reused) >= 2
    programs, fresh = {}, []

    def record(self, program):
        programs[len(programs)] = program
        fresh.append(len(programs) - 1)
        return len(programs) - 1, program()

    def execute(device, trace, *, cq_id, blocking):
        if fresh and fresh[-1] == trace:  # On the mock the recording has run already.
            fresh.clear()
        else:
            programs[trace]()

    monkeypatch.setattr(Replay, "_record", record)
    for name, stand_in in (("execute_trace", execute), ("release_trace", lambda device, trace: None)):
        monkeypatch.setattr(ttnn, name, stand_in)
    monkeypatch.setattr(ttnn, "synchronize_device", lambda device: None)
    replayed, again = run(model, noise(6), policy, capture=True, **alone)
    assert again.steps == done.steps
    assert torch.equal(replayed, expected)
    assert len(programs) == (2 if policy.threshold is None else 3)


@pytest.mark.alone
@pytest.mark.parametrize(
    "halves", ["1x2cfg1sp0tp1", pytest.param("2x4cfg0sp0tp1", marks=pytest.mark.full)], indirect=True
)
@pytest.mark.parametrize(
    "policy", [ReuseBelow.of(0.5, 4), pytest.param(ReuseSteps(frozenset({1, 2})), marks=pytest.mark.full)]
)
def test_halves_reuse_as_the_branches_in_turn_do(halves, policy):
    """With a step without guidance, in which the unconditional half follows."""
    model = loaded(halves.conditional)
    arguments = {"sigmas": SHORT, "guidance": [4.5, 1.0, 4.5, 4.5]}
    in_turn, expected = run(model, noise(6), policy, **arguments)
    parallel = GuidanceParallel(halves, loaded(halves.unconditional))
    together, done = run(model, noise(6), policy, parallel=parallel, **arguments)
    assert done.steps == expected.steps
    assert done.reused == [1, 2]
    assert relative_rmse(in_turn, together) < 1e-5


def test_a_threshold_compares_between_the_first_and_the_last_step():
    policy = ReuseBelow.of(0.1, 4)
    assert [policy.blocks(index) for index in range(4)] == [Blocks.COMPUTED, *[Blocks.COMPARED] * 2, Blocks.COMPUTED]
    assert ReuseBelow.of(0.1, 1).blocks(0) is Blocks.COMPUTED


@pytest.mark.parametrize(
    ("sums", "blocks"),
    [
        ([(1.0, 10.0)], Blocks.REUSED),
        ([(1.1, 10.0)], Blocks.COMPUTED),
        ([(1.9, 10.0), (0.1, 10.0)], Blocks.REUSED),
        ([(0.0, 0.0)], Blocks.COMPUTED),
        ([(float("nan"), 1.0)], Blocks.COMPUTED),
        ([(1.0, float("nan"))], Blocks.COMPUTED),
    ],
)
def test_the_branches_of_a_step_decide_together(sums, blocks):
    """The ratio of sums over both branches, at most the threshold; numbers that are none compute."""
    assert Decisions(ReuseBelow.of(0.1, 9)).compared(sums) is blocks


def test_a_branch_that_the_last_computed_step_left_out_is_computed():
    decisions = Decisions(ReuseBelow.of(0.1, 9))
    wanted = []
    for index, branches in enumerate([2, 1, 2, 1, 2]):
        wanted.append(decisions.wanted(index, branches))
        decisions.done(Blocks.COMPUTED if index < 2 else Blocks.REUSED, branches)
    assert wanted == [Blocks.COMPUTED, Blocks.COMPARED, Blocks.COMPUTED, Blocks.COMPARED, Blocks.COMPUTED]


@pytest.mark.parametrize(
    ("reused", "steps", "blocks", "said"),
    [
        ({0}, 4, 4, "step 0 cannot be reused: of 4 steps"),
        ({3}, 4, 4, "step 3 cannot be reused"),
        ({7}, 4, 4, "step 7 cannot be reused"),
        ({-1}, 4, 4, "step -1 cannot be reused"),
        ({1}, 4, 1, "has only one"),
    ],
)
def test_steps_that_are_always_computed_are_refused(reused, steps, blocks, said):
    with pytest.raises(InputError, match=said):
        check_reused(ReuseSteps(frozenset(reused)), steps, blocks)


@dataclass(frozen=True)
class Script:
    """A policy of a caller: for each step what it wants."""

    wanted: tuple[Blocks, ...]
    threshold: float | None = 0.1

    def blocks(self, index):
        return self.wanted[index]


@pytest.mark.parametrize("index", [0, 3])
def test_a_callers_policy_computes_the_first_and_the_last_step(index):
    wanted = [Blocks.COMPUTED] * 4
    wanted[index] = Blocks.REUSED
    with pytest.raises(InputError, match=f"step {index} cannot be reused"):
        check_reused(Script(tuple(wanted)), 4)


@st.composite
def runs(draw):
    """A policy that `check_reused` takes, and how many branches take part in each step."""
    steps = draw(st.integers(2, 9))
    branches = draw(st.lists(st.sampled_from([1, 2]), min_size=steps, max_size=steps))
    listed = st.frozensets(st.integers(1, max(1, steps - 2)) if steps > 2 else st.nothing())
    inner = st.lists(st.sampled_from(list(Blocks)), min_size=max(0, steps - 2), max_size=max(0, steps - 2))
    free = inner.map(lambda blocks: Script((Blocks.COMPUTED, *blocks, Blocks.COMPUTED)))
    policy = draw(st.one_of(listed.map(ReuseSteps), free, st.just(ReuseBelow.of(0.1, steps))))
    return policy, branches


@given(runs())
def test_the_plan_is_what_the_decisions_make(case):
    """Decided without the plan: a branch has something to reuse if the last computed step ran it."""
    policy, branches = case
    check_reused(policy, len(branches))
    decisions, done, late = Decisions(policy), [], []
    computed = 0
    for index, number in enumerate(branches):
        wanted = decisions.wanted(index, number)
        if number > computed:
            assert wanted is Blocks.COMPUTED
            late += [index] * (policy.blocks(index) is Blocks.REUSED)
        else:
            assert wanted is policy.blocks(index)
        done.append(Blocks.COMPUTED if wanted is Blocks.COMPARED else wanted)
        decisions.done(done[-1], number)
        computed = number if done[-1] is Blocks.COMPUTED else computed
    assert planned(policy, branches).steps == list(zip(branches, done, strict=True))
    assert nothing_fresh(policy, branches) == late
    assert planned(None, branches).reused == []


@pytest.mark.parametrize("mesh", ["1x1sp0tp1"], indirect=True)
@pytest.mark.parametrize("every", [None, 2])
def test_a_run_computes_what_was_planned(mesh, every):
    """A list that names guided steps whose last computed step had no guidance: they are computed."""
    guidance = [1.0, 4.5, 4.5, 1.0, 4.5, 4.5] if every is None else [4.5] * STEPS
    policy = GuideByScale(guidance) if every is None else ReuseUnconditional(guidance, every)
    reuse = ReuseSteps(frozenset({1, 2, 4}))
    branches = [policy.kind(index).branches for index in range(STEPS)]
    _, done = run(loaded(mesh), noise(4), reuse, guidance=guidance, policy=policy)
    assert done == planned(reuse, branches)
    assert nothing_fresh(reuse, branches) == ([1, 4] if every is None else [4])
