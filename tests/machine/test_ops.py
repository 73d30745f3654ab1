import contextlib

import pytest
import torch
import ttnn
from ttnn.decorators import FastOperation

from models.machine import ops
from models.machine.ops import add_hook, remove_hook


def test_hooks_nest_and_leave_in_any_order():
    seen = []

    def hook(name):
        def around(call, operation, *args, **kwargs):
            seen.append((name, operation.python_fully_qualified_name))
            return call(operation, *args, **kwargs)

        return around

    others = list(ops._hooks)  # Golden execution of other tests' meshes.
    older, newer = hook("older"), hook("newer")
    add_hook(older)
    try:
        add_hook(newer)
        with pytest.raises(ValueError, match="is a hook already"):
            add_hook(newer)
        tensor = ttnn.from_torch(torch.ones(2, 2))
        assert seen[:2] == [("newer", "ttnn.from_torch"), ("older", "ttnn.from_torch")]
        remove_hook(older)
        seen.clear()
        assert ttnn.to_torch(tensor).sum() == 4
        assert {name for name, _ in seen} == {"newer"}
    finally:
        for around in (older, newer):
            with contextlib.suppress(ValueError):
                remove_hook(around)
    assert ops._hooks == others
    assert others or FastOperation.__call__ is ops._original
