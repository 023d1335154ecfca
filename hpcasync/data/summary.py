"""What a prepared corpus holds, for people."""

import re
from pathlib import Path

from hpcasync.command_line import as_argument, command_line, own_command
from hpcasync.config.model import ModelConfig
from hpcasync.data.manifest import SIDES, Manifest, held_out_file

# In a checkout; the first that is there.
_CONFIGS = tuple(Path(__file__).resolve().parents[2] / "configs" / name for name in ("base.yaml", "multi30k.yaml"))


def summarise(manifest: Manifest) -> str:
    """A table of what was kept and dropped and why, and of both sides."""
    pairs, options = manifest.pairs, manifest.options
    notes: list[str] = []
    ratio = "no limit" if options.max_ratio is None else f"{options.max_ratio:g}"
    rows = [
        ("pairs read", pairs.read, ""),
        ("kept", pairs.kept, _share(pairs.kept, pairs.read)),
        ("dropped: an empty side", pairs.dropped_empty, _share(pairs.dropped_empty, pairs.read)),
        (f"dropped: over {options.max_length} pieces", pairs.dropped_length, _share(pairs.dropped_length, pairs.read)),
        (f"dropped: ratio over {ratio}", pairs.dropped_ratio, _share(pairs.dropped_ratio, pairs.read)),
    ]
    rows += [(f"{name} pairs (as text)", count, "") for name, count in sorted(manifest.held_out.items())]
    lines = [f"{label:<28}{count:>15,}{share:>10}" for label, count, share in rows]
    rule = options.normalization or "the model's rules"
    for name in sorted(manifest.held_out):
        changed = [manifest.changed.get(held_out_file(name, side), 0) for side in SIDES]
        if any(changed):
            notes.append(
                f"Normalisation by {rule} changes {changed[0]:,} source and {changed[1]:,} target lines of "
                f"{manifest.held_out[name]:,} in the {name} text: such text is never written; see --normalization."
            )
    languages = manifest.source_language or "source", manifest.target_language or "target"
    sides = manifest.source, manifest.target
    lines += [
        "",
        f"{'':<28}{languages[0]:>15}{languages[1]:>15}",
        f"{'vocabulary' + (' (joint)' if manifest.joint else ''):<28}" + "".join(f"{s.num_pieces:>15,}" for s in sides),
        f"{'training pieces':<28}" + "".join(f"{s.num_tokens:>15,}" for s in sides),
        f"{'pieces in a sentence':<28}" + "".join(f"{s.num_tokens / pairs.kept:>15.1f}" for s in sides),
        f"{'longest sentence':<28}" + "".join(f"{s.max_length:>15,}" for s in sides),
        f"{'unknown pieces':<28}" + "".join(f"{s.num_unknown / s.num_tokens:>15.4%}" for s in sides),
    ]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _share(count: int, total: int) -> str:
    return f"{count / total:.2%}"


def training_command(manifest: Manifest, directory: Path) -> str:
    """What trains on a corpus as it is, to be pasted into a shell at this working directory."""
    name = re.sub(r"[^\w.+-]", "-", directory.resolve().name, flags=re.ASCII)
    settings = [f"name={name}", f"data.path={as_argument(directory)}"]
    if not manifest.joint:
        settings.append("model.tie=target")
    if "valid" not in manifest.held_out:
        settings.append("validation.score=false")
    longest = 1 + max(manifest.source.max_length, manifest.target.max_length)
    if longest > ModelConfig().max_length:
        settings.append(f"model.max_length={longest}")
    config = next((path for path in _CONFIGS if path.is_file()), None)
    before = ""
    if config is None:
        config = Path(f"{name}.yaml")
        before = f"echo 'stop: {{epochs: 20}}' > {command_line(config)} && "
    elif config.is_relative_to(Path.cwd()):
        config = config.relative_to(Path.cwd())
    return before + own_command("launch", "-n", "3", "--", "train", config, *settings)
