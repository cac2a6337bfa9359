"""From a picture to a tracked face: decoding, detection, the 478-point mesh, person mask, crop."""
