import pytest
import torch

from rankd.demo.model import QuantizedLinear, Transformer, fake_quantize


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_has_every_level_of_the_grid_and_no_other(bits: int) -> None:
    weight = torch.stack([torch.linspace(-3.0, 3.0, 10_000), torch.linspace(-0.01, 0.01, 10_000)])
    quantized = fake_quantize(weight, bits)
    for row, original in zip(quantized, weight, strict=True):
        levels = row.unique()
        assert len(levels) == 2**bits - 1
        assert levels.abs().max() == pytest.approx(float(original.abs().max()))
        spacing = levels.diff()
        torch.testing.assert_close(spacing, spacing.mean().expand_as(spacing), rtol=1e-3, atol=0.0)


def test_the_error_is_at_most_half_a_level() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert bool(((fake_quantize(weight, 4) - weight).abs() <= 0.5001 * largest / 7).all())


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    incoming = torch.randn(3, 4)
    fake_quantize(weight, 2).backward(incoming)
    assert weight.grad is not None
    assert torch.equal(weight.grad, incoming)


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(fake_quantize(torch.zeros(2, 3), 8), torch.zeros(2, 3))


def test_one_bit_is_refused() -> None:
    with pytest.raises(ValueError, match="bits is 1, expected at least 2"):
        fake_quantize(torch.ones(1, 1), 1)


def test_a_linear_layer_computes_with_the_quantised_weight_and_keeps_its_own() -> None:
    linear = QuantizedLinear(6, 3, bits=2)
    kept = linear.weight.detach().clone()
    assert torch.equal(linear(torch.eye(6)).T, fake_quantize(kept, 2))
    assert torch.equal(linear.weight, kept)


def test_a_character_is_predicted_from_those_before_it_alone() -> None:
    model = Transformer(vocabulary=11, context=8, width=16)
    characters = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(0))
    changed = characters.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(characters), model(changed)
    assert before.shape == (2, 8, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_position_matters() -> None:
    model = Transformer(vocabulary=11, context=8, width=16)
    logits = model(torch.zeros(1, 8, dtype=torch.int64))
    assert not torch.allclose(logits[0, 0], logits[0, 1])
