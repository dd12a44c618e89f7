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
        mem_mb=2000,
        gpu=GPU * config["training"]["processes"],
    params:
        job=job_of("train", "network"),
        code=code_of("train", "network"),
    shell:
        command("train", config["device"])


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
        mem_mb=2000,
        gpu=GPU,
    params:
        job=job_of("guide", "guide"),
        code=code_of("guide", "guide"),
    shell:
        command("guide", config["device"])
