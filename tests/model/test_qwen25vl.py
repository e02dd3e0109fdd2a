import torch


def test_a_batch_goes_through(make_model, make_criterion, collate, encoded):
    batch = collate("packed", encoded)
    losses = make_criterion()(make_model()(batch), batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
