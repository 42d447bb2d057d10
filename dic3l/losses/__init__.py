"""The losses of DIC3L, a module each: sums over rows, which the caller divides by what all processes hold.

    total = 0.8 global + 0.2 contour + 5.0 instances        (weights of preset `paper`; arXiv 2511.07808)

- `contrast`: InfoNCE against a queue: the global branch, and each point of the contour branch;
- `contour`: Contour Consistency: the contrast of one or many matched points of a shallow stage;
- `instances`: Dynamic Instances: the regression of matched boxes.

All compute in float32 (float64 for float64 inputs), also under autocast.
"""
