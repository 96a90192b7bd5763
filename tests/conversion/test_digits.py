"""A trained network keeps its accuracy."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torchvision.models import mobilenet_v3_small

from pwlu_det import convert_model


@pytest.mark.slow
def test_accuracy_of_a_converted_network():
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    x = F.interpolate(x, size=(64, 64), mode="bilinear").repeat(1, 3, 1, 1)
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    training, test = order[:1280], order[1280:]
    model = mobilenet_v3_small(num_classes=10, width_mult=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=200)
    for _ in range(10):
        for batch in training[torch.randperm(len(training))].chunk(20):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def top1() -> float:
        return 100 * float((model(x[test]).argmax(1) == y[test]).float().mean())

    model.eval()
    before = top1()
    assert before > 95
    _, report = convert_model(model, "pwlu", x[training[:256]], num_intervals=16)
    assert abs(top1() - before) <= 0.5 and report.output_error < 0.05
