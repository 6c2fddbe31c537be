"""Read, edit or stop a forward pass of ViLT.

with trace(model, read=["pattern"]) as seen:
    forward_raster(model, batch)
seen["pattern"][3]      # what layer 3 attends to: (question, head, query, key)

with trace(model, edit={"z": lambda layer, z: z / 2}):
    forward_raster(model, batch)    # every head says half as much
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

SITES = {  # the module of a layer that hands the value on; z is what its module receives
    "value": "attention.attention.value",
    "pattern": "attention.attention.dropout",
    "z": "attention.output.dense",
    "layer": "output",
}


class StopForward(Exception):
    """Ends a forward pass; only `trace` raises and catches it."""


@contextmanager
def trace(
    model: nn.Module,
    read: Collection[str] = (),
    edit: Mapping[str, Callable[[int, Tensor], Tensor]] | None = None,
    layers: Iterable[int] | None = None,
    skip: Collection[int] = (),
    stop_after: tuple[str, int] | None = None,
) -> Iterator[dict[str, list[Tensor | None]]]:
    """Read, edit or stop the forward passes of a model while the block runs; see the module.

    Sites, in the order of a layer: "value", what each head reads (question, token, head, d_head);
    "pattern", the attention probabilities (question, head, query, key); "z", each head's output
    before the projection (question, token, head, d_head); "layer", the residual stream after the
    layer (question, token, hidden).
    read: sites to keep, after any edit: the block gets seen[site][layer], None where none passed.
    edit: for each site a function (layer, value) that returns the new value.
    layers: where to read and edit, by default everywhere. skip: layers that are left out.
    stop_after: (site, layer) at which the pass, and with it the block, ends.

    A `PackedForward` is traced alike at "value" and "z", where it has (valid token, head, d_head),
    and of the last layer's z each question's [CLS] alone. Its patterns and residual stream are what
    walking it gives. Raises ValueError for an unknown site, for a pattern where there is none to
    see, and where all layers are skipped.
    """
    edit, encoder = edit or {}, getattr(model, "vilt", model).encoder
    whole, seen = encoder.layer, {site: [None] * len(encoder.layer) for site in read}
    sites = {*read, *edit, *([stop_after[0]] if stop_after else [])}
    check_sites(model, sites)

    def visit(site: str, layer: int, value: Tensor) -> Tensor:
        if site in edit:
            value = edit[site](layer, value)
        if site in read:
            seen[site][layer] = value
        if (site, layer) == stop_after:
            raise StopForward
        return value

    with ExitStack() as stack:
        for number in range(len(whole)) if layers is None else layers:
            for site in sites:
                handle = add_hook(whole[number], site, partial(visit, site, number))
                stack.callback(handle.remove)
        if skip:
            stack.callback(setattr, encoder, "layer", whole)
            encoder.layer = leave_out(whole, skip)
        try:
            yield seen
        except StopForward:
            if stop_after is None:
                raise  # it is meant for a trace around this one


def add_hook(layer: nn.Module, site: str, visit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Hand a site's value, heads apart, to `visit` and what that returns back to the layer."""
    module, size = layer.get_submodule(SITES[site]), layer.attention.attention.attention_head_size

    def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor | None = None) -> Tensor:
        value = inputs[0] if output is None else output
        if site in ("pattern", "layer"):
            return visit(value)
        return visit(value.unflatten(-1, (-1, size))).flatten(-2)

    if site == "z":
        return module.register_forward_pre_hook(hook)
    return module.register_forward_hook(hook)


def leave_out(layers: nn.ModuleList, skip: Collection[int]) -> nn.ModuleList:
    """The other layers; ValueError if there are none."""
    others = [layer for number, layer in enumerate(layers) if number not in skip]
    if not others:
        raise ValueError(f"all {len(layers)} layers are left out: keep one at least.")
    return nn.ModuleList(others)


def check_sites(model: nn.Module, sites: Collection[str]) -> None:
    """ValueError for an unknown site, and where the model's attention cannot be seen as it is."""
    if unknown := set(sites) - set(SITES):
        raise ValueError(f"unknown site {min(unknown)!r}: known are {', '.join(SITES)}.")
    if "pattern" not in sites:
        return
    if model.training:
        raise ValueError("in train mode attention is seen after dropout: call model.eval() first.")
    used = model.config._attn_implementation
    if used != "eager":
        raise ValueError(f"with attention {used!r} ViLT does not mask padding: load it as 'eager'.")
    layers = getattr(model, "vilt", model).encoder.layer
    if any("forward" in vars(layer.attention.attention) for layer in layers):
        raise ValueError("fused attention holds no pattern: leave fused_attention to look at one.")


def check_packed(model: nn.Module) -> None:
    """ValueError inside a trace of what the packed pass does not compute in one piece."""
    for layer in getattr(model, "vilt", model).encoder.layer:
        if layer.output._forward_hooks or layer.attention.attention.dropout._forward_hooks:
            raise ValueError(
                "the packed pass shows patterns and residual streams to who walks it:"
                " trace it at 'value' and 'z'."
            )
