"""A network becomes functions that take every batch and give what the network gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.build import parity_of
from engines.example_inputs import motion_inputs
from engines.export import export, graphs_of
from model.diffusion.denoiser import Conditions
from model.motion.network import MotionNet, NetConfig
from tests.engines.networks import SmallNet, as_tuple, small_inputs


def test_a_network_becomes_functions_with_their_batch() -> None:
    context, denoise = graphs_of(SmallNet().eval(), small_inputs(3))
    assert (context.name, context.names, context.axes) == ("context", ("c",), (0,))
    assert (denoise.names, denoise.axes) == (("x_t", "t", "context.0"), (0, 0, 1))
    assert [tuple(x.shape) for x in denoise.rows(5)] == [(5, 3), (5,), (6, 5)]
    with pytest.raises(ValueError, match=r"the example has 1 row\(s\), expected two or more"):
        graphs_of(SmallNet(), small_inputs(1))
    with pytest.raises(ValueError, match=r"Linear lacks context\(cond\) and denoise"):
        graphs_of(nn.Linear(3, 3), {"x_t": torch.ones(2, 3)})


@pytest.mark.parametrize("batch", [range(1, 9), range(1, 2), range(4, 5)])
def test_one_export_takes_every_batch(batch: range) -> None:
    net = SmallNet().eval().requires_grad_(False)
    programs = {}
    for graph in graphs_of(net, small_inputs(2)):
        module = export(graph, batch).module()
        programs[graph.name] = lambda inputs, module=module: as_tuple(module(*inputs))
    assert max(parity_of(programs, net, small_inputs, batch=batch).values()) < 1e-6


class PassesThrough(SmallNet):
    """Half of its context is a condition, unchanged."""

    def context(self, cond: Conditions) -> tuple[Tensor, ...]:
        return (*super().context(cond), cond["c"].to(self.condition.weight.dtype))

    def denoise(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return super().denoise(x_t, t, context[:1]) + context[1][:, :3]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_function_returns_an_input(dtype: torch.dtype) -> None:
    """TensorRT refuses such functions."""
    net = PassesThrough().eval().requires_grad_(False)
    graphs = {graph.name: graph for graph in graphs_of(net, small_inputs(2))}
    assert max(parity_of(graphs, net, small_inputs, batch=range(1, 4)).values()) < 1e-6
    context = graphs_of(net.to(dtype), small_inputs(2))[0]
    program = export(context, range(1, 4)).run_decompositions()
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    for made in output.args[0]:
        assert "select" in str(made.target) or "permute" in str(made.target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_motion_student_exports_with_any_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = MotionNet(NetConfig(width=16, heads=2, blocks=1, guided=True))
    net.eval().requires_grad_(False).to(dtype)
    for graph in graphs_of(net, motion_inputs(2, guided=True)):
        module = export(graph, range(1, 9)).module()
        for rows in (1, 3):
            made = as_tuple(module(*graph.rows(rows)))
            for a, b in zip(made, graph(graph.rows(rows)), strict=True):
                torch.testing.assert_close(a, b)
