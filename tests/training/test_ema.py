import torch
from torch import nn

from rdm.training.ema import Ema


def test_the_average_follows_the_decay_with_warm_up():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.0)
    ema = Ema(module, 0.9)
    nn.init.constant_(module.weight, 1.0)
    ema.update(module)
    assert torch.allclose(ema.state()["weight"], torch.tensor([[1 - 2 / 11]]))
    ema.update(module)
    assert torch.allclose(ema.state()["weight"], torch.tensor([[1 - 2 / 11 * 3 / 12]]))


def test_the_average_of_constant_weights_is_the_weights():
    module = nn.Linear(4, 4)
    ema = Ema(module, 0.999)
    for _ in range(10):
        ema.update(module)
    assert torch.equal(ema.state()["weight"], module.weight.detach())


def test_parameters_that_do_not_train_are_left_out():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert set(Ema(module, 0.9).state()) == {"weight"}


def test_a_restored_average_continues_bitwise():
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    first = Ema(module, 0.99)
    first.update(module)
    second = Ema(nn.Linear(3, 3), 0.99)
    second.load({name: value.clone() for name, value in first.state().items()}, first.num_updates)
    nn.init.normal_(module.weight)
    first.update(module)
    second.update(module)
    assert torch.equal(first.state()["weight"], second.state()["weight"])
