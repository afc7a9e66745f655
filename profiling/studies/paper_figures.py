"""The figures of the paper's Tables 4.1, 4.2 and 4.3, as printed, and what is known of where they come from.

Source: From Lightweight CNNs to SpikeNets (arXiv 2602.09717). Reasons: the tables recomputed, each checked in the tests
or marked as an inference.
"""

#: Data set -> classes, image size.
DATASETS = {"cifar10": (10, 32), "cifar100": (100, 32), "tiny-imagenet": (200, 64)}

#: Columns of Table 4.1: accuracy, F1, ACs (k), MACs (k), parameters (k), energy (mJ).
TABLE_4_1 = {
    ("cifar10", "shufflenetv2"): ("0.40", "0.40", "93", "894", "911.0", "0.0042"),
    ("cifar10", "xception"): ("0.75", "0.75", "1510", "96300", "1025.0", "0.4444"),
    ("cifar10", "mnasnet"): ("0.78", "0.77", "3430", "12130", "151.8", "0.0589"),
    ("cifar10", "mixnet"): ("0.73", "0.73", "523", "506.9", "84.90", "0.0028"),
    ("cifar10", "squeezenet"): ("0.75", "0.74", "16610", "4470", "736.5", "0.0355"),
    ("cifar10", "squeezenet-p"): ("0.81", "0.81", "11200", "4230", "599.1", "0.0295"),
    ("cifar100", "shufflenetv2"): ("0.12", "0.10", "163", "894.6", "1000.0", "0.0043"),
    ("cifar100", "xception"): ("0.36", "0.34", "1780", "96310", "1025.0", "0.4446"),
    ("cifar100", "mnasnet"): ("0.49", "0.48", "3050", "12930", "163.5", "0.0622"),
    ("cifar100", "mixnet"): ("0.44", "0.43", "862", "506.9", "108.0", "0.0023"),
    ("cifar100", "squeezenet"): ("0.47", "0.47", "20790", "4470", "782.6", "0.0393"),
    ("cifar100", "squeezenet-p"): ("0.54", "0.53", "13490", "4230", "645.3", "0.0316"),
    ("tiny-imagenet", "shufflenetv2"): ("0.11", "0.09", "642", "3780", "1110.0", "0.0180"),
    ("tiny-imagenet", "xception"): ("0.23", "0.21", "6440", "385630", "10460.0", "1.7797"),
    ("tiny-imagenet", "mnasnet"): ("0.38", "0.37", "12040", "51690", "176.4", "0.2486"),
    ("tiny-imagenet", "mixnet"): ("0.34", "0.33", "2000", "203.0", "133.7", "0.0093"),
    ("tiny-imagenet", "squeezenet"): ("0.41", "0.40", "80094", "17880", "833.9", "0.1543"),
    ("tiny-imagenet", "squeezenet-p"): ("0.45", "0.44", "51970", "16920", "696.6", "0.1246"),
}

#: Columns of Table 4.2: accuracy, parameters, energy (mJ). The schedules are those of ``ablation.SCHEDULES``.
TABLE_4_2 = {
    "full": ("0.75", "736500", "0.0355"),
    "head-1": ("0.77", "559080", "0.0241"),
    "head-2": ("0.77", "376220", "0.0257"),
    "tail-1": ("0.78", "673720", "0.0304"),
    "tail-2": ("0.79", "621660", "0.0291"),
    "alt-1": ("0.79", "362030", "0.0260"),
    "alt-2": ("0.76", "363050", "0.0226"),
    "ref-1": ("0.81", "599130", "0.0295"),
    "ref-2": ("0.79", "735950", "0.0279"),
}

#: Columns of Table 4.3: CNN accuracy (%), SNN accuracy (%), CNN energy (mJ), SNN energy (mJ), their ratio.
TABLE_4_3 = {
    "shufflenetv2": ("70", "40", "0.010", "0.004", "2.5"),
    "xception": ("79", "75", "2.44", "0.444", "5.5"),
    "mnasnet": ("83", "78", "0.113", "0.059", "1.9"),
    "mixnet": ("82", "73", "0.047", "0.003", "15.7"),
    "squeezenet": ("81", "75", "0.252", "0.036", "7.0"),
    "squeezenet-p": ("82", "81", "0.168", "0.030", "5.6"),
}

FIRE_5 = "the paper still counts an unused Fire 5 (50,016 parameters); its own MACs leave it out"
INFERRED = "the paper gives no stage table; ours is the nearest found to its sizes"
LINEAR = (
    "not reproduced: nearly every convolution would have to see spikes, but where the CNN has no ReLU there is no LIF"
)

#: Model -> why its parameters or MACs differ; those of SqueezeNet do not.
PARAMETER_REASONS = dict.fromkeys(("shufflenetv2", "xception", "mnasnet", "mixnet"), INFERRED) | {
    "squeezenet-p": FIRE_5
}
MAC_REASONS = {"shufflenetv2": INFERRED, "mnasnet": INFERRED, "xception": LINEAR, "mixnet": LINEAR}

#: (data set, model, quantity) -> a slip of the paper, where it explains more than the reasons above.
SLIPS = {
    ("cifar100", "xception", "parameters"): (
        "the paper prints its 10-class figure again; 90 more classes need 46,170 parameters more"
    ),
    ("tiny-imagenet", "xception", "parameters"): "probably a slip of ten (1,046.0 k)",
    ("tiny-imagenet", "mixnet", "macs"): (
        "a slip of ten: the paper's own energy needs about 2,030 k, which is not reproduced either"
    ),
    ("cifar100", "mixnet", "energy"): "the paper left out its ACs: 0.9 pJ x AC + 4.6 pJ x MAC gives 0.0031",
    ("tiny-imagenet", "mixnet", "energy"): "the paper left out its ACs, with MACs of about 2,030 k",
}

#: Schedule -> why the parameters of its ticks are not those printed.
SCHEDULE_REASONS = {
    "head-1": "open: no network of these modules has the printed size",
    "head-2": "printed: the network that keeps 2, 3, 4, 6, 8 (376,218), not the one ticked",
    "tail-2": "printed: the network that keeps 2, 6, 7, 8, 9 (621,658), not the one ticked",
    "alt-1": "a first convolution of 96 channels would give 362,026; an inference",
    "alt-2": "without BatchNorm after squeeze and bias in the first convolution it would be 363,050; an inference",
    "ref-1": FIRE_5,
    "ref-2": "printed: Fire 3 and 7 still counted (735,946); the 512 that the full model has more are open",
}

#: Model -> why the CNN's energy differs.
CNN_ENERGY_REASONS = dict.fromkeys(("xception", "mnasnet", "mixnet"), INFERRED) | {
    "squeezenet-p": "not reproduced: 37.88 M MACs, the paper's energy needs 36.52 M"
}

ONE_STEP = "counted as the paper counts: one time step"
WHOLE = "all time steps, padding excluded; the paper does not give it"
