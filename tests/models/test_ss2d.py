"""SS2D and its block against second, naive implementations that share nothing but the weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from mammo_utils.models.ss2d import PATHS, SS2D, PatchEmbedding, PatchMerging, SSConvSSM, _shared_paths, four_paths
from tests.operations import COPIES, Operations


def randomise(module):
    """Weights as after training: nothing at its initial 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


def naive_ss2d(module, image):
    """SS2D of one image (H, W, C), pixel by pixel, along the four paths written out as loops."""
    w = {name: p.detach().double() for name, p in module.named_parameters()}
    height, width, _ = image.shape
    inner, rank, states = w["D"].shape[1], w["dt_weight"].shape[2], w["A_log"].shape[2]
    xz = image.double() @ w["in_proj.weight"].T
    x, z = xz[..., :inner], xz[..., inner:]
    convolved = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            total = w["conv.bias"].clone()
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        total += x[i + di, j + dj] * w["conv.weight"][:, 0, di + 1, dj + 1]
            convolved[i, j] = total * torch.sigmoid(total)
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    total = torch.zeros_like(convolved)
    for k, path in enumerate([rows, columns, rows[::-1], columns[::-1]]):
        h = torch.zeros(inner, states, dtype=torch.float64)
        for i, j in path:
            u = convolved[i, j]
            parameters = w["x_proj"][k] @ u
            delta = torch.log1p(torch.exp(w["dt_weight"][k] @ parameters[:rank] + w["dt_bias"][k]))
            B, C = parameters[rank : rank + states], parameters[rank + states :]
            h = torch.exp(delta[:, None] * -torch.exp(w["A_log"][k])) * h + (delta * u)[:, None] * B
            total[i, j] += h @ C + w["D"][k] * u
    mean, variance = total.mean(-1, keepdim=True), total.var(-1, unbiased=False, keepdim=True)
    y = (total - mean) / torch.sqrt(variance + 1e-5) * w["out_norm.weight"] + w["out_norm.bias"]
    return (y * z * torch.sigmoid(z)) @ w["out_proj.weight"].T


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (1, 7), (6, 1), (1, 1)])
def test_ss2d_is_four_loops_over_pixels(height, width, backend):
    module = randomise(SS2D(6, states=4, backend=backend))
    images = torch.randn(2, height, width, 6)
    expected = torch.stack([naive_ss2d(module, image) for image in images])
    found = module(images).double()
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_four_paths_visit_every_pixel_once():
    paths = four_paths(2, 3)
    assert paths.tolist() == [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]
    assert len(PATHS) == len(paths)


def test_the_paths_of_a_caller_are_its_own():
    """Paths that a caller changes in place do not reach the scans of the modules or other callers."""
    module, image = SS2D(4, states=2), torch.randn(1, 2, 3, 4)
    before, paths = module(image), four_paths(2, 3)
    paths[0] = paths[0].flip(0).clone()
    assert torch.equal(module(image), before)
    assert four_paths(2, 3)[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_no_copy_of_the_image_is_made():
    """Every array as large as the image, B or C is made once, by a matrix product, a convolution or a function of
    the image; nothing is copied, cast or reordered."""
    module, image = SS2D(16), torch.randn(2, 6, 5, 16)
    _shared_paths(6, 5, image.device)
    with Operations() as operations:
        module(image)
    assert not set(operations.names(2 * 6 * 5 * 32)) & COPIES, operations.done


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_inference_before_training(backend):
    """The paths are cached; if they were made in torch.inference_mode, autograd could not save them."""
    _shared_paths.cache_clear()
    module, image = SS2D(4, states=2, backend=backend), torch.randn(1, 3, 8, 4)
    with torch.inference_mode():
        module(image)
    module(image).sum().backward()


def test_each_pixel_receives_information_from_all_others():
    module = randomise(SS2D(4, states=4))
    image = torch.randn(1, 9, 11, 4, requires_grad=True)
    module(image)[0, 4, 5].sum().backward()
    assert (image.grad.abs().sum(-1) > 0).all()


def naive_shuffle(block, x):
    """The block as published last, written with functions; its channels are shuffled as in ShuffleNet."""
    half = x.shape[-1] // 2
    left, right = x[..., :half].permute(0, 3, 1, 2), x[..., half:]
    n1, c1, n2, _, c2, n3, _, c3, _ = block.convolutions
    y = F.batch_norm(left, n1.running_mean, n1.running_var, n1.weight, n1.bias)
    y = F.conv2d(y, c1.weight, c1.bias, padding=1)
    y = F.relu(F.batch_norm(y, n2.running_mean, n2.running_var, n2.weight, n2.bias))
    y = F.conv2d(y, c2.weight, c2.bias, padding=1)
    y = F.relu(F.batch_norm(y, n3.running_mean, n3.running_var, n3.weight, n3.bias))
    y = F.relu(F.conv2d(y, c3.weight, c3.bias)).permute(0, 2, 3, 1)
    joined = torch.cat([y, naive_scanned(block, right)], -1)
    shuffled = joined.view(*x.shape[:3], 2, half).transpose(3, 4).reshape(x.shape)
    return x + shuffled


def naive_inner(block, x):
    """The block as published first: conv, BN, ReLU, conv, BN, ReLU, 1x1 conv on one half; a residual scan on the other;
    a 1x1 convolution of both; a residual connection around all."""
    half = x.shape[-1] // 2
    y, right = x[..., :half].permute(0, 3, 1, 2), x[..., half:]
    *pairs, pointwise = (m for m in block.convolutions if not isinstance(m, torch.nn.ReLU))
    for conv, norm in zip(pairs[::2], pairs[1::2], strict=True):
        y = F.conv2d(y, conv.weight, conv.bias, padding=1)
        y = F.relu((y - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var + norm.eps)[:, None, None]
                   * norm.weight[:, None, None] + norm.bias[:, None, None])  # fmt: skip
    y = torch.einsum("bchw,dc->bhwd", y, pointwise.weight[:, :, 0, 0]) + pointwise.bias
    joined = torch.cat([y, naive_scanned(block, right) + right], -1)
    return x + joined @ block.mix.weight[:, :, 0, 0].T + block.mix.bias


def naive_scanned(block, right):
    normed = F.layer_norm(right, right.shape[-1:], block.norm.weight, block.norm.bias)
    return torch.stack([naive_ss2d(block.ss2d, image) for image in normed]).float()


@pytest.mark.parametrize(("variant", "naive"), [("shuffle", naive_shuffle), ("inner", naive_inner)])
def test_block(variant, naive):
    block = randomise(SSConvSSM(8, states=4, variant=variant)).eval()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 8)
    with torch.no_grad():
        expected = naive(block, x)
        assert (block(x) - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("variant", ["shuffle", "inner"])
def test_drop_path_leaves_out_the_scanned_half_of_whole_images_in_training_only(variant):
    torch.manual_seed(0)
    block = randomise(SSConvSSM(8, states=4, variant=variant, drop_path=0.4)).train()
    plain, x = SSConvSSM(8, states=4, variant=variant), torch.randn(60, 3, 4, 8)
    scans = []
    block.drop_path.register_forward_hook(lambda module, inputs, output: scans.append((inputs[0], output)))
    with torch.no_grad():
        block(x)
        plain.load_state_dict(block.state_dict())  # with its running statistics
        before, after = scans[0]
        kept = after.flatten(1).any(1)
        assert 0 < kept.sum() < 60 and torch.equal(after[~kept], torch.zeros_like(after[~kept]))
        torch.testing.assert_close(after[kept], before[kept] / 0.6)
        assert torch.equal(block.eval()(x), plain.eval()(x)), "nothing is left out in evaluation"
        torch.manual_seed(1)
        state = torch.get_rng_state()
        plain.train()(x)
        assert torch.equal(torch.get_rng_state(), state), "with 0 nothing is drawn, so older results stay the same"


def test_parameters_of_the_first_published_block():
    """The count of the published block of 48 channels, from its own code."""
    assert sum(p.numel() for p in SSConvSSM(48, variant="inner").parameters()) == 27_912


def test_patch_merging():
    module = randomise(PatchMerging(3))
    x = torch.randn(2, 5, 4, 3)
    padded = torch.zeros(2, 6, 4, 3)
    padded[:, :5] = x
    expected = torch.zeros(2, 3, 2, 6)
    for i in range(3):
        for j in range(2):
            square = [padded[:, 2 * i + a, 2 * j + b] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            normed = F.layer_norm(torch.cat(square, -1), (12,), module.norm.weight, module.norm.bias)
            expected[:, i, j] = normed @ module.reduce.weight.T
    torch.testing.assert_close(module(x), expected)


def test_patch_embedding_takes_any_size():
    module = PatchEmbedding(8, patch=4).eval()
    x = torch.randn(1, 3, 9, 14)
    padded = F.pad(x, (0, 2, 0, 3))
    assert module(x).shape == (1, 3, 4, 8)
    torch.testing.assert_close(module(x), module(padded))


def test_initialisation():
    torch.manual_seed(0)
    module = SS2D(64)
    assert module.conv.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.1), "the fan of one channel"
    dt = F.softplus(module.dt_bias)
    assert 0.001 <= dt.min() + 1e-6 and dt.max() - 1e-6 <= 0.1
    torch.testing.assert_close(-torch.exp(module.A_log[2, 7]), -torch.arange(1.0, 17.0))
    marked = {name for name, p in module.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D"}


def test_unfit_arguments_are_named():
    with pytest.raises(ValueError, match="7 is odd"):
        SSConvSSM(7)
    with pytest.raises(ValueError, match="'shuffle' or 'inner'"):
        SSConvSSM(8, variant="mix")
