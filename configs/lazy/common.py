"""What both detectors share: from scratch on COCO for 270,000 iterations, with PWLU, as in the paper."""

from detectron2 import model_zoo

from pwlu_det.backbone.placement import POSITIONS, STAGES

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.use_instance_mask = False

optimizer = model_zoo.get_config("common/optim.py").SGD
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_3x

train = model_zoo.get_config("common/train.py").train
train.max_iter = 270000

activation = {
    "name": "pwlu",
    "options": {},  # arguments of the constructor, such as num_intervals
    "stages": STAGES,
    "positions": POSITIONS,
    "heads": [],
    "num_frozen": 0,  # as freeze_at of the ResNet
    "lr_factor": 1.0,
    "weight_decay": 0.0,
    "phase1_iters": 36645,  # 5 epochs; 0: learn from the start
}
