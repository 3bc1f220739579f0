"""Manifests that are refused, and the field that the refusal names.

Judged twice: by the operator's models in tests/unit/operator/test_api.py, and by the API server with the generated CRD
in tests/e2e/test_api_server_refuses.py. Each case is a sentence, a merge patch of the spec of the smallest valid job
(None removes a field), and the path of the field that a person has to mend.
"""

from typing import Any

HERMES = {"huggingFace": {"repository": "team/calls"}, "format": "hermes"}
TWO_NODES = {"nodes": 2}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # sources
    "no model": ({"model": None}, "spec.model"),
    "a model without a source": ({"model": {"huggingFace": None}}, "spec.model"),
    "a model with two sources": ({"model": {"path": "models/mine"}}, "spec.model"),
    "a repository with a space": (
        {"model": {"huggingFace": {"repository": "meta llama"}}},
        "spec.model.huggingFace.repository",
    ),
    "a model path that leaves the filesystem": (
        {"model": {"huggingFace": None, "path": "models/../../etc"}},
        "spec.model.path",
    ),
    "an absolute model path": ({"model": {"huggingFace": None, "path": "/mnt/shared/model"}}, "spec.model.path"),
    "no data sets": ({"datasets": []}, "spec.datasets"),
    "a data set without a source": ({"datasets": [{"format": "hermes"}]}, "spec.datasets[0]"),
    "a data set with two sources": ({"datasets": [HERMES | {"path": "data/calls.jsonl"}]}, "spec.datasets[0]"),
    "a second data set without a format": ({"datasets": [HERMES, {"path": "calls.jsonl"}]}, "spec.datasets[1].format"),
    "an unknown format": ({"datasets": [HERMES | {"format": "csv"}]}, "spec.datasets[0].format"),
    "a data path that leaves the filesystem": (
        {"datasets": [{"path": "..", "format": "openai"}]},
        "spec.datasets[0].path",
    ),
    "a subset that is empty": (
        {"datasets": [{"huggingFace": {"repository": "team/calls", "subset": ""}, "format": "hermes"}]},
        "spec.datasets[0].huggingFace.subset",
    ),
    "no samples at all": ({"datasets": [HERMES | {"maxSamples": 0}]}, "spec.datasets[0].maxSamples"),
    # budget
    "a budget of nothing": ({"runPolicy": {"budget": 0}}, "spec.runPolicy.budget"),
    "a budget below nothing": ({"runPolicy": {"budget": -5}}, "spec.runPolicy.budget"),
    "a budget with its currency": ({"runPolicy": {"budget": "250 EUR"}}, "spec.runPolicy.budget"),
    "a budget of thousandths": ({"runPolicy": {"budget": "99.505"}}, "spec.runPolicy.budget"),
    # recipe
    "rank zero": ({"lora": {"rank": 0}}, "spec.lora.rank"),
    "dropout of everything": ({"lora": {"dropout": 1}}, "spec.lora.dropout"),
    "a layer named twice": ({"lora": {"targets": ["q_proj", "q_proj"]}}, "spec.lora.targets"),
    "an unknown layer": ({"lora": {"targets": ["lm_head"]}}, "spec.lora.targets[0]"),
    "no layers": ({"lora": {"targets": []}}, "spec.lora.targets"),
    "a learning rate of zero": (
        {"training": {"optimizer": {"learningRate": 0}}},
        "spec.training.optimizer.learningRate",
    ),
    "a batch of half a sequence": ({"training": {"batchSize": 0.5}}, "spec.training.batchSize"),
    "an unknown precision": ({"training": {"precision": "int3"}}, "spec.training.precision"),
    "epochs in words": ({"training": {"epochs": "three"}}, "spec.training.epochs"),
    "no checkpoint kept": ({"checkpoint": {"keep": 0}}, "spec.checkpoint.keep"),
    "Weights & Biases without a key": ({"tracking": {"wandb": {"project": "calls"}}}, "spec"),
    # evaluation and export
    "a gate on a metric that is none": (
        {"evaluation": {"gate": {"functionAcuracy": ">= 0.85"}}},
        "spec.evaluation.gate.functionAcuracy",
    ),
    "a bound without a sign": ({"evaluation": {"gate": {"loss": "1.5"}}}, "spec.evaluation.gate.loss"),
    "a bound that is no number": ({"evaluation": {"gate": {"loss": "<= low"}}}, "spec.evaluation.gate.loss"),
    "an accuracy in percent": (
        {"evaluation": {"gate": {"functionAccuracy": ">= 85"}}},
        "spec.evaluation.gate.functionAccuracy",
    ),
    "an accuracy that must be low": (
        {"evaluation": {"gate": {"exactArguments": "<= 0.85"}}},
        "spec.evaluation.gate.exactArguments",
    ),
    "a gate without an evaluation": (
        {"evaluation": {"enabled": False, "gate": {"improvesBase": True}}},
        "spec.evaluation",
    ),
    "a gate without rows to score": (
        {"evaluation": {"holdout": {"share": 0}, "gate": {"loss": "<= 1.5"}}},
        "spec.evaluation",
    ),
    "rows to score on from two sources": (
        {"evaluation": {"datasets": [{"path": "dev.jsonl", "huggingFace": {"repository": "a/b"}, "format": "openai"}]}},
        "spec.evaluation.datasets[0]",
    ),
    "rows to score on outside of the filesystem": (
        {"evaluation": {"datasets": [{"path": "../dev.jsonl", "format": "openai"}]}},
        "spec.evaluation.datasets[0].path",
    ),
    "a weight of rows to score on": (
        {"evaluation": {"datasets": [{"path": "dev.jsonl", "format": "openai", "weight": 2}]}},
        "spec.evaluation.datasets[0].weight",
    ),
    "most rows held out": ({"evaluation": {"holdout": {"share": 0.9}}}, "spec.evaluation.holdout.share"),
    "an upload without a token": ({"export": {"pushTo": {"repository": "team/calls"}}}, "spec"),
    # compute
    "no nodes": ({"compute": {"nodes": 0}}, "spec.compute.nodes"),
    "processes on GPUs": ({"compute": {"processesPerNode": 2}}, "spec.compute"),
    "GPUs on the CPU": ({"compute": {"device": "cpu", "gpusPerNode": 2}}, "spec.compute"),
    "an unknown device": ({"compute": {"device": "tpu"}}, "spec.compute.device"),
    "a token in the open": ({"compute": {"env": [{"name": "HF_TOKEN", "value": "x"}]}}, "spec.compute.env"),
    "a variable of the operator": ({"compute": {"env": [{"name": "PET_NNODES", "value": "9"}]}}, "spec.compute.env"),
    "a variable named twice": (
        {"compute": {"env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "NCCL_DEBUG", "value": "WARN"}]}},
        "spec.compute.env",
    ),
    "a variable with a dash": ({"compute": {"env": [{"name": "NCCL-DEBUG"}]}}, "spec.compute.env[0].name"),
    "an image with a space": ({"compute": {"image": "trainer :1"}}, "spec.compute.image"),
    "an unknown pull policy": ({"compute": {"imagePullPolicy": "Sometimes"}}, "spec.compute.imagePullPolicy"),
    "a resource that is none": (
        {"compute": {"resources": {"requests": {"memroy": "2Gi"}}}},
        "spec.compute.resources.requests",
    ),
    "a vendor's resource as a request": (
        {"compute": {"resources": {"requests": {"rdma/hca": 1}}}},
        "spec.compute.resources.requests",
    ),
    "a limit of something that is no resource": (
        {"compute": {"resources": {"limits": {"gpus": 1}}}},
        "spec.compute.resources.limits",
    ),
    "an amount that is none": (
        {"compute": {"resources": {"limits": {"memory": "lots"}}}},
        "spec.compute.resources.limits.memory",
    ),
    "a request above its limit": (
        {"compute": {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "2G"}}}},
        "spec.compute.resources",
    ),
    "a node label that is none": ({"compute": {"nodeSelector": {"gpu type": "h100"}}}, "spec.compute.nodeSelector"),
    "a node label's value that is none": (
        {"compute": {"nodeSelector": {"gpu": "h 100"}}},
        "spec.compute.nodeSelector.gpu",
    ),
    "a toleration of everything by Equal": (
        {"compute": {"tolerations": [{"operator": "Equal"}]}},
        "spec.compute.tolerations[0]",
    ),
    "a toleration of a taint that cannot be": (
        {"compute": {"tolerations": [{"key": "gpu node", "operator": "Exists"}]}},
        "spec.compute.tolerations[0].key",
    ),
    "a toleration that exists with a value": (
        {"compute": {"tolerations": [{"key": "gpu", "operator": "Exists", "value": "yes"}]}},
        "spec.compute.tolerations[0]",
    ),
    "a toleration for a while of an effect that evicts nobody": (
        {"compute": {"tolerations": [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 5}]}},
        "spec.compute.tolerations[0]",
    ),
    # storage and Secret
    "no storage": ({"storage": None}, "spec.storage"),
    "a claim neither named nor made": (
        {"storage": {"shared": {"size": None, "storageClassName": None}}},
        "spec.storage.shared",
    ),
    "a claim named and made": (
        {"storage": {"shared": {"claimName": "models", "storageClassName": None}}},
        "spec.storage.shared",
    ),
    "a class for a claim that is there": (
        {"storage": {"shared": {"claimName": "models", "size": None}}},
        "spec.storage.shared",
    ),
    "an affinity that a pod's spec does not have": (
        {"compute": {"affinity": {"gpuAffinity": {}}}},
        "spec.compute.affinity.gpuAffinity",
    ),
    "a preference of no weight": (
        {
            "compute": {
                "affinity": {
                    "nodeAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "preference": {}}]
                    }
                }
            }
        },
        "spec.compute.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight",
    ),
    "a size of nothing": ({"storage": {"shared": {"size": "0Gi"}}}, "spec.storage.shared.size"),
    "a size without sense": ({"storage": {"network": {"size": "2 TB"}}}, "spec.storage.network.size"),
    "a network disk without a size": ({"storage": {"network": {}}}, "spec.storage.network"),
    "an access mode that many only read": (
        {"storage": {"network": {"size": "1Gi", "accessMode": "ReadOnlyMany"}}},
        "spec.storage.network.accessMode",
    ),
    "a Secret with a name that is none": ({"secretName": "My_Secret"}, "spec.secretName"),
    # fields that do not exist
    "a misspelt field": ({"training": {"epoch": 3}}, "spec.training.epoch"),
    "a field of another group": ({"rank": 8}, "spec.rank"),
    "a field of a list's element": ({"datasets": [HERMES | {"size": 2}]}, "spec.datasets[0].size"),
}

REFUSED_NAMES = {
    "a name of 64 characters": "a" * 64,
    "a name that begins with a digit": "8b-calls",
    "a name with a dot": "calls.v2",
}
