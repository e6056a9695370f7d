"""How QGIS shows a file of tiles: coloured by confidence or change, labelled with the captions."""

from __future__ import annotations

from xml.sax.saxutils import quoteattr

from bita.scenes.layers import Layer

_BOUNDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_COLOURS = ("215,48,39", "252,141,89", "254,224,139", "145,207,96", "26,152,80")
_UNKNOWN = "150,150,150"
_CLEAR, _OPAQUE = 60, 255
"""Of 255: how much of a fill and of an outline covers the scene."""
_LABEL_SCALE = 40_000
"""Labels are drawn from this scale on; all over a whole scene they would cover it."""


def qml(layer: Layer) -> str:
    """Return a style as QGIS saves it: a class of colour for each fifth from 0 to 1, one for what has no value."""
    field = f'"{layer.shade}"'
    colours = _COLOURS if layer.good else _COLOURS[::-1]
    rules, symbols = [], []
    for k, colour in enumerate(colours):
        low, high = _BOUNDS[k], _BOUNDS[k + 1]
        above = f"{field} >= {low}" if k else f"{field} IS NOT NULL"
        below = f" AND {field} < {high}" if k + 1 < len(colours) else ""
        rules.append(_rule(k, above + below, f"{layer.shade} {low} to {high}"))
        symbols.append(_symbol(k, colour))
    rules.append(_rule(len(colours), f"{field} IS NULL", f"no {layer.shade}"))
    symbols.append(_symbol(len(colours), _UNKNOWN))
    return "\n".join(
        [
            "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>",
            '<qgis version="3.22" styleCategories="Symbology|Labeling" labelsEnabled="1">',
            '<renderer-v2 type="RuleRenderer" symbollevels="0" enableorderby="0" forceraster="0">',
            f'<rules key="tiles">{"".join(rules)}</rules>',
            f"<symbols>{''.join(symbols)}</symbols>",
            "</renderer-v2>",
            _labels(layer),
            "</qgis>",
        ]
    )


def _rule(number: int, condition: str, label: str) -> str:
    return (
        f'<rule key="rule{number}" symbol="{number}" filter={quoteattr(condition)} label={quoteattr(label)}/>'
    )


def _symbol(number: int, colour: str) -> str:
    options = {
        "color": f"{colour},{_CLEAR}",
        "outline_color": f"{colour},{_OPAQUE}",
        "outline_style": "solid",
        "outline_width": "0.5",
        "outline_width_unit": "MM",
        "style": "solid",
    }
    inner = "".join(
        f'<Option name="{name}" type="QString" value="{value}"/>' for name, value in options.items()
    )
    return (
        f'<symbol name="{number}" type="fill" alpha="1" clip_to_extent="1" force_rhr="0">'
        f'<layer class="SimpleFill" enabled="1" locked="0" pass="0"><Option type="Map">{inner}</Option></layer>'
        "</symbol>"
    )


def _labels(layer: Layer) -> str:
    return (
        '<labeling type="simple"><settings calloutType="simple">'
        f'<text-style fieldName={quoteattr(layer.label)} isExpression="1" fontFamily="Sans Serif" fontSize="8" '
        'fontSizeUnit="Point" fontWeight="75" textColor="20,20,20,255" textOpacity="1" multilineHeight="1">'
        '<text-buffer bufferDraw="1" bufferSize="0.8" bufferSizeUnits="MM" bufferColor="255,255,255,255" '
        'bufferOpacity="0.8"/></text-style>'
        '<text-format autoWrapLength="24" useMaxLineLengthForAutoWrap="1" multilineAlign="1"/>'
        '<placement placement="1" centroidInside="1" centroidWhole="1" fitInPolygonOnly="0"/>'
        f'<rendering drawLabels="1" obstacle="0" scaleVisibility="1" scaleMin="0" scaleMax="{_LABEL_SCALE}"/>'
        "</settings></labeling>"
    )
