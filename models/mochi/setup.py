"""The one set-up: from what a user asked for to what all jobs work with, checked once.

`resolve` opens the checkpoint, fills in defaults and checks every rule that needs neither weights nor a mesh. The
command line, the Python API, dry runs, measurements, decoding and the commands of the store all begin with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.device import MODES, REAL, OpenMesh, choose_mode, parse_mesh
from models.machine.checks import integer, path_text, short, text, whole
from models.machine.errors import InputError
from models.machine.headers import read_header
from models.machine.host import quiet_ttnn
from models.machine.profile import Profile, find
from models.machine.systems import block_within, systems
from models.machine.ways import FUSED, MOST_LINKS, Ways, parse_plain
from models.mochi.config import TransformerConfig, config_named
from models.mochi.conventions import Conventions
from models.mochi.defaults import Defaults
from models.mochi.geometry import Geometry, Scales
from models.mochi.notes import notes
from models.mochi.precision import Precision
from models.mochi.presets import fill, preset
from models.mochi.reuse import Conditions, Weights, parse_reuse
from models.mochi.sampling.reuse import Forwards, ReusePolicy, check_reused, planned
from models.mochi.sampling.schedule import (
    check_reuse,
    check_scheduler,
    check_strength,
    first_step,
    guidance_schedule,
    resolve_sigmas,
)
from models.mochi.sampling.solver import EULER, check_solver
from models.mochi.schedules import schedule_of
from models.mochi.text.config import T5Config
from models.mochi.text.words import Words
from models.mochi.vae.config import DecoderConfig
from weight_cache.checkpoints.checkpoint import Checkpoint
from weight_cache.checkpoints.lora import LoraRequest, LoraSource
from weight_cache.location import store_directory

if TYPE_CHECKING:
    from models.layers import Chunks
    from models.mochi.components import Configs
    from models.mochi.sampling.denoise import StepPolicy
    from models.mochi.size import Subject
    from models.parallel import Layout

# More than any screen shows; beyond some thousands the encoder refuses.
MOST_FPS = 1000


@dataclass(frozen=True)
class VideoRequest:
    """The video that a user asked for. None means the checkpoint's default, and for `reuse` none.

    `reuse` is what `models.mochi.reuse.parse_reuse` takes. `sigmas` (n + 1 noise levels, in place of steps and their
    schedule) and `cfg_schedule` (n guidance scales, in place of one) are what `models.mochi.schedules.schedule_of`
    takes.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None
    threshold_noise: float | None = None
    linear_steps: int | None = None
    seed: int | None = None
    fps: int | None = None
    solver: str | None = None
    guidance_interval: str | Sequence[float] | None = None
    guidance_reuse: int | None = None
    preset: str | None = None
    reuse: Any = None
    sigmas: Any = None
    cfg_schedule: Any = None


_SCHEDULE = ("threshold_noise", "linear_steps")


@dataclass(frozen=True)
class Video:
    """A video with every default filled in and every rule checked.

    Attributes:
        settings: the preset's and the checkpoint's where the request has none.
        geometry: sizes.
        sigmas: n + 1 noise levels.
        guidance: n guidance scales.
        chosen: every setting of the request as it is used, the preset's included.
        reuse: decides which steps reuse blocks; None for none.
        solver: of `models.mochi.sampling.solver`.
        guidance_reuse: K of `models.mochi.inputs.reuse_policy`; None to compute every guided step.
        whole: sigmas and guidance of all steps, where a run from a video does the last ones alone.
    """

    settings: Defaults
    geometry: Geometry
    sigmas: list[float]
    guidance: list[float]
    chosen: Mapping[str, Any]
    reuse: ReusePolicy | None = None
    solver: str = EULER
    guidance_reuse: int | None = None
    whole: tuple[list[float], list[float]] | None = None

    @property
    def schedule(self) -> tuple[list[float], list[float]]:
        """Sigmas and guidance of all steps, those that a run from a video leaves out too."""
        return (self.sigmas, self.guidance) if self.whole is None else self.whole

    def of_strength(self, strength: float, weights: Weights | None = None, *, on_halves: bool = False) -> Video:
        """Return what a run from a video of this strength does: the last steps of the schedule.

        Raises:
            InputError: the strength is none, or blocks are reused in steps that are left out.
        """
        sigmas, guidance = self.schedule
        first = first_step(len(guidance), check_strength(strength))
        cut = replace(self, sigmas=sigmas[first:], guidance=guidance[first:], whole=(sigmas, guidance), reuse=None)
        if not cut.guidance or self.reuse is None:
            return cut
        return replace(cut, reuse=parse_reuse(self.chosen["reuse"], cut.conditions(on_halves=on_halves), weights))

    @classmethod
    def resolve(
        cls,
        request: VideoRequest,
        defaults: Defaults,
        scales: Scales,
        weights: Weights | None = None,
        *,
        on_halves: bool = False,
    ) -> Video:
        """Fill in the request's preset and `defaults`, and check its rules.

        `weights` are those that make it. `on_halves` says whether the branches will run beside each other.

        Raises:
            InputError: a value breaks its rule.
        """
        given = {field.name: getattr(request, field.name) for field in fields(request)}
        chosen = _chosen(request.preset, given, defaults)
        try:
            video = cls._checked(chosen, defaults, scales)
            reuse = parse_reuse(chosen["reuse"], video.conditions(on_halves=on_halves), weights)
            return replace(video, reuse=reuse)
        except InputError as error:
            if request.preset is None:
                raise
            raise InputError(f"{error} (preset {request.preset}: {preset(request.preset)})") from error

    @classmethod
    def _checked(cls, chosen: Mapping[str, Any], defaults: Defaults, scales: Scales) -> Video:
        """Return the video but for the reuse of blocks."""
        settings = defaults.overridden({field.name: chosen[field.name] for field in fields(Defaults)})
        check_fps(settings.fps)
        whole("seed", settings.seed, 0, 2**63 - 1)
        sigmas, scales_of_steps = chosen["sigmas"], chosen["cfg_schedule"]
        if sigmas is None:
            levels = resolve_sigmas(settings.num_steps, None, settings.threshold_noise, chosen["linear_steps"])
        else:
            levels = resolve_sigmas(chosen["num_steps"], sigmas)
            settings = replace(settings, num_steps=len(levels) - 1)
        guidance = settings.guidance_scale if scales_of_steps is None else scales_of_steps
        return cls(
            settings,
            Geometry(settings.height, settings.width, settings.num_frames, scales),
            levels,
            guidance_schedule(guidance, settings.num_steps, chosen["guidance_interval"]),
            chosen,
            None,
            check_solver(EULER if chosen["solver"] is None else chosen["solver"]),
            None if chosen["guidance_reuse"] is None else check_reuse(chosen["guidance_reuse"]),
        )

    def as_arguments(self) -> dict[str, Any]:
        """Return all settings as plain data, by the names of `VideoRequest`: a request of them makes the same video."""
        made = plain(self.chosen) | asdict(self.settings)
        if self.chosen["sigmas"] is not None:
            made |= dict.fromkeys(_SCHEDULE)
        if self.chosen["cfg_schedule"] is not None:
            made["guidance_scale"] = None
        return made

    def used_guidance_reuse(self, *, on_halves: bool) -> int | None:
        """Return K as it is used; None where no guided step is left out.

        Args:
            on_halves: whether the branches run beside each other; the unconditional one is then never left out.
        """
        return None if on_halves or max(self.guidance, default=1) == 1 else self.guidance_reuse

    def conditions(self, *, on_halves: bool) -> Conditions:
        """Return what of it decides which steps may reuse blocks."""
        size = (self.geometry.width, self.geometry.height, self.geometry.num_frames)
        return Conditions(self.sigmas, self.guidance, self.solver, self.used_guidance_reuse(on_halves=on_halves), size)

    def branches(self, *, on_halves: bool) -> list[int]:
        """Return how many branches of guidance take part in each step."""
        from models.mochi.sampling.denoise import GuideByScale, ReuseUnconditional

        every = self.used_guidance_reuse(on_halves=on_halves)
        policy: StepPolicy = GuideByScale(self.guidance)
        if every is not None:
            policy = ReuseUnconditional(self.guidance, every)
        return [policy.kind(index).branches for index in range(len(self.guidance))]


def _chosen(name: str | None, given: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """Return the settings of a request, with those of its preset in the place of None.

    Schedules that are written down are read, and take the place of what a preset says of the same.

    Raises:
        InputError: there is no such preset, a schedule is none, or is given together with what it replaces.
    """
    given = dict(given)
    replaced = {"sigmas": _SCHEDULE, "cfg_schedule": ("guidance_scale", "guidance_interval")}
    asked = set(given)
    for schedule, others in replaced.items():
        if given[schedule] is None:
            continue
        given[schedule] = schedule_of(schedule, given[schedule])
        both = [other for other in others if given[other] is not None]
        if both:
            raise InputError(f"{schedule} takes the place of {both[0]}: give one of the two")
        asked -= {*others, *(("num_steps",) if schedule == "sigmas" else ())}
    return given | fill(name, {each: given[each] for each in asked}, defaults)


def planned_forwards(video: Video, *, on_halves: bool) -> Forwards:
    """Return what each step of a video will compute. Steps that a threshold decides count as computed.

    Args:
        video: the video.
        on_halves: whether the branches run beside each other; the unconditional one is then never left out.
    """
    return planned(video.reuse, video.branches(on_halves=on_halves))


def check_fps(fps: Any) -> int:
    """Return a whole number of frames per second that a file can have.

    Raises:
        InputError: it is none.
    """
    made = integer("fps", fps)
    if not 1 <= made <= MOST_FPS:
        raise InputError(f"fps {short(made)} must be at least 1 and at most {MOST_FPS} (Mochi's is 30)")
    return made


@dataclass(frozen=True)
class Request:
    """What a user asked for: the models, the mesh, and how they run.

    Attributes:
        model: a directory in Diffusers' or Genmo's layout, a ComfyUI .safetensors file, a Hugging Face id in the local
            cache, `tiny`, or an open checkpoint. None for `model_config` alone.
        variant: of the weight files, such as `bf16`.
        base: for Genmo's and ComfyUI's forms, where the components come from that they lack.
        model_config: sizes by name (`preview`) in place of a checkpoint: for dry runs and plans.
        mesh: shape such as `2x4`, or an open mesh.
        layout: such as `sp0tp1`; by the mesh if None.
        mode: `hardware`, `golden`, `dry-run` or `auto`.
        system: what the mesh is part of, by its name in `models.machine.systems`; None for the smallest that holds it.
        precision: name of a policy of `models.mochi.precision`; None for the preset's, else `default`.
        loras: merged into the transformer's weights: requests, paths (`FILE` or
            `FILE:STRENGTH`), or tuples of path and strength.
        cache_dir: of the store; see `weight_cache.location`.
        vae_split: how the decoder is split over the mesh, such as `h0w1`; by the video if None.
        attention_chunks: rows of a chunk of queries and of keys, such as `256x384`; by rule if None.
        first_frames: `genmo` or `diffusers`; the checkpoint's if None. See `models.mochi.conventions`.
        empty_prompt: `zeros` or `encoded`; the checkpoint's if None. See `models.mochi.conventions`.
        capture: whether a mesh that can records a denoising step once and replays it; None for the profile's choice,
            else yes.
        plain: ops whose single ops are taken, such as `norm,halo` (`models.machine.ways`); None for the profile's.
        links: most Ethernet links between two chips; None for the profile's, else all.
        topology: `line` or `ring`; None for the profile's, else by the system.
        profile: file of a machine profile; `none` for none; None for the machine's own, which is read on hardware.
        video: a video whose rules are checked before anything heavy is imported.
        components: those whose weights the job loads. The files of the others may be missing.
    """

    model: str | Path | Checkpoint | None = "tiny"
    variant: str | None = None
    base: str | None = None
    model_config: str | None = None
    mesh: str | tuple[int, int] | OpenMesh = "2x4"
    layout: str | None = None
    mode: str = "auto"
    system: str | None = None
    precision: str | None = None
    loras: Sequence[str | Path | tuple[str | Path, float] | LoraRequest] = ()
    cache_dir: str | Path | None = None
    vae_split: str | None = None
    attention_chunks: str | None = None
    first_frames: str | None = None
    empty_prompt: str | None = None
    capture: bool | None = None
    plain: str | None = None
    links: int | None = None
    topology: str | None = None
    profile: str | Path | None = None
    video: VideoRequest | None = None
    components: tuple[str, ...] = ("transformer", "vae", "text_encoder")


@dataclass(frozen=True)
class Setup:
    """A request, resolved and checked.

    Attributes:
        request: as the user gave it.
        checkpoint: open; None where only sizes were named.
        configs: of the three models.
        scales: compression factors of the checkpoint.
        defaults: generation settings of the checkpoint.
        conventions: how its first frames are decoded and an empty prompt is encoded.
        mode: of a run.
        mesh_shape: (rows, columns) of chips.
        layout: which mesh axis does what.
        precision: how the transformer's arithmetic is done.
        loras: checked to be there.
        chunks: of attention; None for the rule's.
        video: the video that the request named; None without one.
        profile: of the machine, if one was read.
        ways: around what fails on the machine.
        ring: whether the fabric is started as rings; None for the system's choice.
        capture: whether a mesh that can records a denoising step once and replays it.
        subject: what the size of a video is judged for.
    """

    request: Request
    checkpoint: Checkpoint | None
    configs: Configs
    scales: Scales
    defaults: Defaults
    conventions: Conventions
    mode: str
    mesh_shape: tuple[int, int]
    layout: Layout
    precision: Precision
    loras: tuple[LoraRequest, ...]
    chunks: Chunks | None
    video: Video | None
    profile: Profile | None = None
    ways: Ways = FUSED
    ring: bool | None = None
    capture: bool = True
    subject: Subject | None = None

    def geometry(self, height: int, width: int, num_frames: int) -> Geometry:
        """Check a size of video.

        Raises:
            InputError: a size breaks its rule.
        """
        return Geometry(height, width, num_frames, self.scales)

    @property
    def weights(self) -> Weights:
        """The transformer's weights, as a list of reused steps names them."""
        return _weights(self.checkpoint, self.precision, self.loras)

    @property
    def on_halves(self) -> bool:
        """Whether the branches of guidance run beside each other."""
        return self.layout.cfg_axis is not None

    def for_video(self, wanted: VideoRequest) -> Setup:
        """Return this set-up with another video, whose rules are checked as `resolve` checks them.

        Raises:
            InputError: a value breaks its rule, or the video's preset is of another precision than this set-up.
        """
        from models.mochi.size import check_size

        precision = _precision_of_preset(wanted)
        if self.request.precision is None and precision not in (None, self.precision.name):
            raise InputError(
                f"preset {wanted.preset} is of precision {precision}, but the models are loaded with "
                f"{self.precision.name}: load them with precision {precision}, or name no preset"
            )
        video = Video.resolve(wanted, self.defaults, self.scales, self.weights, on_halves=self.on_halves)
        if video.reuse is not None:
            check_reused(video.reuse, len(video.guidance), self.configs.transformer.num_layers)
        if self.subject is not None:
            check_size(self.subject.keeping(video.reuse, is_guided=max(video.guidance, default=1) > 1), video.geometry)
        return replace(self, request=replace(self.request, video=wanted), video=video)

    def notes(self) -> list[str]:
        """Return what the user should know of the video's steps before they run, each in a line."""
        if self.video is None or self.subject is None:
            return []
        return notes(
            self.video.branches(on_halves=self.on_halves),
            self.video.reuse,
            guidance_reuse=self.video.guidance_reuse if max(self.video.guidance, default=1) > 1 else None,
            on_halves=self.on_halves,
            whole=self.subject.whole,
        )


def resolve(request: Request) -> Setup:
    """Fill in the defaults of a request, and check whatever can be checked without weights and without a mesh.

    What is cheap to check comes first: a refused number costs neither torch nor ttnn.

    Raises:
        InputError: a value breaks its rule, or the checkpoint is damaged or of another model.
        MissingInputError: the checkpoint, a part of it or a LoRA is missing.
        MachineError: mode `hardware` without cards.
    """
    _check_types(request)
    precision = Precision.named(request.precision or _precision_of_preset(request.video) or "default")
    opened = request.mesh if isinstance(request.mesh, OpenMesh) else None
    mesh_shape = opened.shape if opened is not None else parse_mesh(request.mesh)  # type: ignore[arg-type]
    if opened is not None and request.mode not in ("auto", opened.mode):
        raise InputError(f"mode {request.mode!r} was asked, but the open mesh is in mode {opened.mode!r}")
    mode = opened.mode if opened is not None else choose_mode(request.mode)  # type: ignore[arg-type]
    profile = find(request.profile, mode)
    wanted = _of_the_machine(request, profile)
    if request.system is None and opened is None:
        check_mesh(mesh_shape, mode)
    if request.cache_dir is not None:
        check_store(store_directory(request.cache_dir))
    loras = LoraRequest.all_of(request.loras)
    for lora in loras:
        read_header(lora.path, "LoRA", "give a .safetensors file of a LoRA")
    checkpoint = _checkpoint(request)
    if loras and checkpoint is not None:
        LoraSource(checkpoint.transformer, loras)  # Refuses what does not fit before anything heavy is done.
    scales, defaults, conventions = Scales(), Defaults(), Conventions()
    if checkpoint is not None:
        scales, defaults = check_configs(checkpoint), Defaults.of(checkpoint)
        conventions = Conventions.of(checkpoint)
    conventions = conventions.overridden(request.first_frames, request.empty_prompt)
    weights = _weights(checkpoint, precision, loras)
    # Layouts are ttnn's business too, but of a list of steps the numbers are checked first.
    on_halves = request.layout is not None and "cfg" in request.layout.lower()
    video = None
    if request.video is not None:
        video = Video.resolve(request.video, defaults, scales, weights, on_halves=on_halves)
    # Layouts, chunks and splits are ttnn's business, whose import takes seconds.
    quiet_ttnn()
    from models.layers import Chunks
    from models.mochi.components import Configs, check_weights, choose_layout
    from models.mochi.size import Subject, check_size
    from models.mochi.text.tokenizer import check_files
    from models.mochi.vae.split import Split

    if checkpoint is not None:
        configs = Configs.of(checkpoint)
        configs.check_blocks(checkpoint, request.components)
    else:
        configs = Configs(transformer=config_named(request.model_config or "preview"))
    layout = choose_layout(configs, mesh_shape, precision, request.layout)
    if request.vae_split is not None:
        Split.parse(request.vae_split)
    subject = Subject(configs, layout, precision, mode, request.components, request.vae_split)
    if video is not None and video.reuse is not None:
        check_reused(video.reuse, len(video.guidance), configs.transformer.num_layers)
    if video is None:
        check_size(subject, None)
    else:
        check_size(subject.keeping(video.reuse, is_guided=max(video.guidance, default=1) > 1), video.geometry)
    chunks = Chunks.parse(wanted.attention_chunks) if wanted.attention_chunks is not None else None
    if checkpoint is not None:
        check_weights(configs, checkpoint, layout, request.components)
        if "text_encoder" in request.components:
            check_files(checkpoint)
            Words.of(checkpoint.tokenizer)
    return Setup(
        request,
        checkpoint,
        configs,
        scales,
        defaults,
        conventions,
        mode,
        mesh_shape,
        layout,
        precision,
        loras,
        chunks,
        video,
        profile,
        Ways(wanted.plain, wanted.links, wanted.topology == "line"),
        None if wanted.topology is None else wanted.topology == "ring",
        wanted.capture is not False,
        subject,
    )


_TEXTS = (
    "variant",
    "model_config",
    "layout",
    "mode",
    "system",
    "precision",
    "vae_split",
    "attention_chunks",
    "first_frames",
    "empty_prompt",
    "plain",
    "topology",
)
_PATHS = ("model", "base", "cache_dir", "profile")


def _check_types(request: Request) -> None:
    """Check that the parts of a request are of the types that it names; None stands for a default.

    Raises:
        InputError: one is not.
    """
    for names, check in ((_TEXTS, text), (_PATHS, path_text)):
        for name in names:
            value = getattr(request, name)
            if value is not None and not (name == "model" and isinstance(value, Checkpoint)):
                check(name, value)
    if request.links is not None:
        whole("links", request.links, 1, MOST_LINKS)
    if request.capture not in (None, True, False):
        raise InputError(f"capture {short(request.capture)} must be true or false, or None for the default")


def _weights(checkpoint: Checkpoint | None, precision: Precision, loras: Sequence[LoraRequest]) -> Weights:
    return Weights(None if checkpoint is None else checkpoint.transformer.fingerprint, precision.name, loras)


def _precision_of_preset(video: VideoRequest | None) -> str | None:
    return None if video is None or video.preset is None else preset(video.preset).settings.get("precision")


def check_mesh(shape: tuple[int, int], mode: str) -> None:
    """Check that some system holds a mesh.

    Raises:
        InputError: none does, or none that can be a mock.
    """
    known = [system for system in systems().values() if system.mock is not None or mode in REAL]
    if not any(block_within(system.mesh, *shape) for system in known):
        largest = max(known, key=lambda system: system.chips)
        raise InputError(
            f"mesh {shape[0]}x{shape[1]} does not fit any system that is known; the largest is {largest.name}, "
            f"{largest.mesh[0]}x{largest.mesh[1]} chips"
        )


def check_store(root: Path) -> None:
    """Check that the store's directory is one, or could be made, without making it.

    Raises:
        InputError: a part of the path is a file, or there is no permission.
    """
    refused = f"the cache directory {root.parent} cannot be written"
    try:
        there = next(path for path in (root, *root.absolute().parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"{refused}: {there} is a file; choose another --cache-dir")
        needed = os.R_OK | os.X_OK if there == root else os.W_OK | os.X_OK
        if not os.access(there, needed):
            raise InputError(f"{refused}: no permission in {there}; choose another --cache-dir")
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{refused} ({error.strerror}): choose another --cache-dir") from error


def _of_the_machine(request: Request, profile: Profile | None) -> Profile:
    """Return what a request and a profile ask for together; the request wins."""
    given = profile or Profile()
    return Profile(
        plain=given.plain if request.plain is None else parse_plain(request.plain),
        links=given.links if request.links is None else request.links,
        topology=given.topology if request.topology is None else request.topology,
        attention_chunks=request.attention_chunks or given.attention_chunks,
        capture=given.capture if request.capture is None else request.capture,
    )


def _checkpoint(request: Request) -> Checkpoint | None:
    """Open the checkpoint that a request names, if it names one."""
    if isinstance(request.model, Checkpoint):
        if request.variant is not None or request.base is not None:
            raise InputError("variant and base belong to the checkpoint, which is already open: give them there")
        return request.model
    if request.model is None or request.model_config is not None:
        return None
    return Checkpoint.open(request.model, request.variant, request.base)


def check_configs(checkpoint: Checkpoint) -> Scales:
    """Check that the components fit each other and the sampler, and return the compression factors.

    Raises:
        InputError: they do not fit; the message names both sides.
    """
    check_scheduler(checkpoint.scheduler)
    transformer = TransformerConfig.from_dict(checkpoint.transformer.config)
    text = T5Config.from_dict(checkpoint.text_encoder.config)
    if transformer.text_embed_dim != text.d_model:
        raise InputError(
            f"the transformer takes text features of width {transformer.text_embed_dim}, the text encoder gives "
            f"{text.d_model}: they are not of one checkpoint ({checkpoint.directory})"
        )
    return Scales.from_configs(transformer, DecoderConfig.from_dict(checkpoint.vae.config))


def request_of(named: Mapping[str, Any], **own: Any) -> Request:
    """Return the request that values by name make, such as the options of a command.

    Names that neither a request nor its video has are left out; values of ``own`` win. Without a value for the video
    there is none.
    """
    values = {**named, **own}
    video = {field.name: values[field.name] for field in fields(VideoRequest) if field.name in values}
    of_request = {field.name: values[field.name] for field in fields(Request) if field.name in values}
    return Request(**{"video": VideoRequest(**video) if video else None, **of_request})


def as_arguments(request: Request) -> dict[str, Any]:
    """Return a request as plain data, for the JSON beside a video."""
    given = {field.name: getattr(request, field.name) for field in fields(request)}
    given["video"] = asdict(request.video) if request.video is not None else None
    given["loras"] = [str(lora) for lora in request.loras]
    return plain(given)


def plain(value: Any) -> Any:
    """Return a value of a request as JSON has it: NumPy's numbers as numbers, and what is no data by its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) or getattr(value, "ndim", 0) > 0:
        return [plain(part) for part in value]
    if hasattr(value, "__index__"):
        return int(value)
    return float(value) if hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0 else str(value)


__all__ = [
    "MODES",
    "Request",
    "Setup",
    "Video",
    "VideoRequest",
    "as_arguments",
    "check_configs",
    "request_of",
    "resolve",
]
