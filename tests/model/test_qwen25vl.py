import torch


def test_all_losses_of_a_batch_are_finite(make_model, make_criterion, collate, encoded):
    batch = collate("packed", encoded)
    losses = make_criterion()(make_model()(batch), batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
