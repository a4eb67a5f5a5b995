#!/usr/bin/env python3
"""Writes a Markdown table of fsbench results, gfs against the others as ratios.

  table.py OUT.md COMMAND RESULT.json...
"""
import json
import platform
import statistics
import sys


def main():
    out, command, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    values, units, order, errors = {}, {}, [], []
    labels = []
    for path in files:
        with open(path) as source:
            run = json.load(source)
        label = run["meta"]["label"]
        if label not in labels:
            labels.append(label)
        for row in run["results"]:
            step = row["step"]
            if "error" in row:
                errors.append("%s %s: %s" % (label, step, row["error"]))
                continue
            if step not in order:
                order.append(step)
            units[step] = row["unit"]
            values.setdefault((step, label), []).append((row["value"], row.get("cpu_us_per_unit", 0)))
    labels.sort(key=lambda l: (l != "gfs", l))
    others = [l for l in labels if l != "gfs"]
    with open(out, "w") as sink:
        sink.write("# gfs beside %s\n\n" % ", ".join(others))
        sink.write("Command: `%s`; kernel %s, medians of %d run(s); CPU of the whole machine in us a unit.\n\n" % (
            command, platform.release(), max(len(v) for v in values.values())))
        head = ["step", "unit"] + labels + ["gfs / " + l for l in others] + ["CPU gfs"] + ["CPU " + l for l in others]
        sink.write("| %s |\n|%s\n" % (" | ".join(head), "---|" * len(head)))
        for step in order:
            mid = {l: [statistics.median(x) for x in zip(*values[(step, l)])] for l in labels if (step, l) in values}
            number = lambda l: "%.4g" % mid[l][0] if l in mid else "-"
            ratio = lambda l: "%.2f" % (mid["gfs"][0] / mid[l][0]) if "gfs" in mid and l in mid and mid[l][0] else "-"
            cpu = lambda l: "%.0f" % mid[l][1] if l in mid else "-"
            cells = [step, units[step]] + [number(l) for l in labels] + [ratio(l) for l in others]
            sink.write("| %s |\n" % " | ".join(cells + [cpu("gfs")] + [cpu(l) for l in others]))
        for error in errors:
            sink.write("\nfailed: %s\n" % error)
    print(open(out).read())


if __name__ == "__main__":
    main()
