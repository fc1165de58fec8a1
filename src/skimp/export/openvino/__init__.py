"""OpenVINO: :mod:`.target` is skimp's side, :mod:`.convert` runs in OpenVINO's own environment."""
