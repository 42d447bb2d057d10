"""Methods that DIC3L is compared with, a module a family, behind the same interface (`dic3l.base.Method`).

- `moco_v1`, `moco_v2` are DIC3L without its two other losses (`dic3l.method`), and no matter of this package;
- `instance`: SimCLR, BYOL, SimSiam, Barlow Twins: one vector a view;
- `densecl`, `pixpro`, `resim`: vectors of places, matched in both views.

All see the same tiles, views and encoders as DIC3L; what differs is the network behind the encoder and the loss. Losses
are those of lightly where it has them.
"""
