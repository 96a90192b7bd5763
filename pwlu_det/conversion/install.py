"""Put activations where a model calls them."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor, nn

from pwlu_det.conversion.calls import CallSites, dispatching
from pwlu_det.conversion.record import Place


class _Original(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.forward = function


class Installation:
    """The changes of a model, which can be undone.

    At first, each of the ``chosen`` places has its original activation, out of place; see :meth:`put`.
    """

    def __init__(self, model: nn.Module, places: Collection[Place], chosen: Collection[Place]):
        self._model, self._places = model, places
        self._chosen = {id(place) for place in chosen}
        self._slots: dict[int, list[tuple[nn.Module, str]]] = {}
        self._undo: list[Callable[[], None]] = []
        for owner, module in dict.fromkeys((p.owner, p.module) for p in places if id(p) in self._chosen):
            own = [p for p in places if p.owner is owner and p.module is module]
            if module is None:
                self._dispatch(owner, own)
            else:
                self._replace(owner, module, own)

    def put(self, place: Place, activation: nn.Module) -> None:
        for holder, attribute in self._slots[id(place)]:
            setattr(holder, attribute, activation)

    def name(self, place: Place) -> str:
        """The name of the activation in the model."""
        holder, attribute = self._slots[id(place)][0]
        prefix = next(name for name, module in self._model.named_modules() if module is holder)
        return f"{prefix}.{attribute}".lstrip(".")

    def undo(self) -> None:
        for function in reversed(self._undo):
            function()

    def _replace(self, owner: nn.Module, module: nn.Module, own: list[Place]) -> None:
        """Replace a module, where ``owner`` has it or, if that is in a container, wherever it is."""
        holders = [(owner, key) for key, child in owner._modules.items() if child is module]
        holders = holders or [
            (m, key) for m in self._model.modules() for key, child in m._modules.items() if child is module
        ]
        new = _Original(own[0].original)
        if len(own) == 1:
            self._slots[id(own[0])] = holders
        else:
            new = self._call_sites(own)
        for holder, key in holders:
            self._undo.append(lambda holder=holder, key=key: setattr(holder, key, module))
            setattr(holder, key, new)

    def _dispatch(self, owner: nn.Module, own: list[Place]) -> None:
        """Let a module dispatch the functions that it calls."""
        cls = type(owner)

        def undo() -> None:
            owner.__class__ = cls
            del owner.activation_sites, owner.kept_paths

        self._undo.append(undo)
        owner.activation_sites = self._call_sites([p for p in own if id(p) in self._chosen])
        owner.kept_paths = [p.path for p in own if id(p) not in self._chosen]
        owner.__class__ = dispatching(cls)

    def _call_sites(self, own: list[Place]) -> CallSites:
        # A call that is not replaced keeps the module, as it may be in place.
        activations = [
            _Original(place.original) if id(place) in self._chosen else place.module for place in own
        ]
        sites = CallSites(activations, [place.path for place in own])
        self._slots.update({id(place): [(sites, str(i))] for i, place in enumerate(own)})
        return sites
