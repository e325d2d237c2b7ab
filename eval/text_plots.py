"""The picture of text compressors: how small against how fast."""

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from eval.plots import BLUE, GREY, INK, STYLE, new_figure
from eval.text_peers import OURS, Measured


def ratio_against_speed(rows: Sequence[Measured]) -> Figure:
    """A panel for each text: the ratio of each compressor over its speed, from encoding (ring) to decoding (dot)."""
    texts = list(dict.fromkeys(row.text for row in rows))
    with rc_context(STYLE):
        figure = new_figure(2.9 * len(texts))
        for axes, text in zip(figure.subplots(len(texts), 1, sharex=True, squeeze=False)[:, 0], texts, strict=True):
            shown = sorted((row for row in rows if row.text == text), key=lambda row: -row.ratio)
            for n, row in enumerate(shown):  # labels above and below in turn, so that neighbours do not meet
                color = BLUE if row.name == OURS else GREY
                speeds = [row.text_bytes / 1e3 / s for s in (row.encode_seconds, row.decode_seconds)]
                axes.plot(speeds, [row.ratio] * 2, color=color)
                axes.plot(speeds[0], row.ratio, "o", color=color, fillstyle="none")
                axes.plot(speeds[1], row.ratio, "o", color=color)
                axes.annotate(
                    row.name,
                    (min(speeds), row.ratio),
                    (0, 7 if n % 2 == 0 else -14),
                    textcoords="offset points",
                    color=INK,
                    fontsize=8,
                )
            axes.set(title=text, xscale="log", ylabel="text over archive,\nmodel left out")
            axes.margins(y=0.18)
        axes.set_xlabel("kB of text for a second of processor time: encoding (ring), decoding (dot)")
    return figure
