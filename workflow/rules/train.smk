rule train:
    input:
        inputs_of("train", "network"),
    output:
        weights=PATHS.weights("{network}"),
        loss=PATHS.loss("{network}"),
        record=PATHS.record("train", "{network}"),
    log:
        PATHS.log("train", "{network}"),
    # Training first: everything else waits for it.
    priority: 10
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"] * config["training"]["processes"]
    resources:
        gpu=GPU * config["training"]["processes"],
    params:
        job=job_of("train", "network"),
        code=code_of("train", "network"),
        device=device_of,
    shell:
        command("train", "{params.device}")


rule guide:
    input:
        inputs_of("guide", "guide"),
    output:
        weights=PATHS.guide("{guide}"),
        record=PATHS.record("guide", "{guide}"),
    log:
        PATHS.log("guide", "{guide}"),
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        gpu=GPU,
    params:
        job=job_of("guide", "guide"),
        code=code_of("guide", "guide"),
        device=device_of,
    shell:
        command("guide", "{params.device}")
