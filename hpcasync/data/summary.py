"""What a prepared corpus holds, for people."""

from hpcasync.data.manifest import Manifest


def summarise(manifest: Manifest) -> str:
    """A table of what was kept and dropped and why, and of both sides."""
    pairs, options = manifest.pairs, manifest.options
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
    return "\n".join(lines)


def _share(count: int, total: int) -> str:
    return f"{count / total:.2%}"
