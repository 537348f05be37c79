"""Which models can be tuned, after which layers they may rank, and whether a schedule was tuned for here."""

from __future__ import annotations

from lifedeploy import methods
from lifedeploy.artifact import Artifact, EngineRecord
from lifedeploy.engines import registry
from lifedeploy.engines.base import BuildOptions, Engine
from lifedeploy.errors import UsageError
from lifedeploy.machine import gpus
from lifedeploy.spec import ORDERINGS
from lifedeploy.tuned import TunedFor


def require_tunable(export: Artifact, batch: int) -> None:
    """Make sure that an export can be put under other schedules, and asked ``batch`` images at a time.

    Raises:
        UsageError: its method takes no token counts, or chooses at every drop; its graph has another form, or no drop;
            or it is fixed to another batch.
    """
    manifest, method = export.manifest, methods.get(export.method)
    if method.role != methods.SLIMMED:
        raise UsageError(
            f"{export.path} is the {method.role} of its export, which has no schedule to tune",
            hint=f"{export.folder}/ names the model itself",
        )
    if not method.takes_counts:
        raise UsageError(
            f"{method.name} takes no token counts, so there is nothing to tune: {method.own_budget or 'a keep rate'}",
            hint="tune takes methods that rank once: life",
        )
    if not method.derives:
        raise UsageError(
            f"{method.name} chooses anew at every drop, so what a drop loses depends on those before it; expected a "
            "method that ranks once: life",
            hint=f"lifedeploy export --method {method.name} --counts takes any schedule",
        )
    if manifest.graph.form != ORDERINGS[0]:
        raise UsageError(
            f"{export.path} is in the form {manifest.graph.form}; other schedules are made of {ORDERINGS[0]} alone",
            hint=f"lifedeploy export --graph {ORDERINGS[0]}",
        )
    if not manifest.spec.schedule.leaving_layers:
        raise UsageError(f"{export.path} drops no tokens, so it has no schedule to tune", hint="export with --rho 0.7")
    fixed = manifest.graph.batch_size
    if fixed not in (None, batch):
        raise UsageError(f"{export.path} is fixed to batch {fixed}, and --batch is {batch}", hint=f"--batch {fixed}")


def base_layers(export: Artifact, asked: int | None) -> tuple[int, ...]:
    """Layers after which tokens may be ranked: where the predictor was trained; of a model still to be trained any, or
    the one ``asked`` for.

    Raises:
        UsageError: another one is asked for than it was trained at, or one that the backbone does not have.
    """
    spec = export.manifest.spec
    own_layer, depth = spec.schedule.base_layer, spec.schedule.depth
    trained = spec.provenance.predictor == "trained"
    if asked is not None and not 1 <= asked < depth:
        raise UsageError(f"base layer {asked} is out of range: 1 to {depth - 1} are allowed")
    if trained and asked not in (None, own_layer):
        raise UsageError(
            f"the predictor was trained to rank after layer {own_layer}, and --base-layer is {asked}",
            hint="leave it out, or train a model there first",
        )
    if trained:
        return (own_layer,)
    return tuple(range(1, depth)) if asked is None else (asked,)


def processor_here(engine: type[Engine]) -> str:
    """What an engine computes on here, as far as the system tells: the GPUs, or the CPU with its instruction sets."""
    return ", ".join(gpus()) if engine.on_gpu else engine.processor(BuildOptions())


def unlike_here(tuned: TunedFor) -> str:
    """What is another here than where a schedule was tuned, in a sentence; '' where nothing is."""
    anywhere = "its counts are as good as others, and may not be the fastest elsewhere"
    if tuned.engine not in registry.names(hidden=True):
        return f"the schedule was tuned for {tuned.label}, an engine that is not known here: {anywhere}"
    engine = registry.get(tuned.engine)
    status = registry.examine(engine)
    if not status.ok:
        return (
            f"the schedule was tuned for {tuned.label} on {tuned.processor}, and {tuned.engine} does not run here "
            f"({status.reason}): {anywhere}"
        )
    return tuned.unlike(
        engine=tuned.engine,
        precision=engine.plan(tuned.precision).precision,
        runtime=status.version,
        processor=processor_here(engine),
    )


def unlike_built(tuned: TunedFor, record: EngineRecord) -> str:
    """What of an engine is another than a schedule was tuned for, in a sentence; '' where nothing is."""
    engine = registry.get(record.name)
    return tuned.unlike(
        engine=record.name,
        precision=record.precision,
        runtime=record.runtime,
        processor=processor_here(engine) if engine.on_gpu else record.processor,
    )
