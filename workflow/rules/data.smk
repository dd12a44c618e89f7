rule data:
    output:
        images=PATHS.data,
        record=PATHS.record("data"),
    log:
        PATHS.root / "logs" / "data.log",
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        mem_mb=2000,
    params:
        job=job_of("data"),
        code=code_of("data"),
    shell:
        command("data")


rule classifier:
    input:
        PATHS.data,
    output:
        weights=PATHS.classifier,
        record=PATHS.record("classifier"),
    log:
        PATHS.root / "logs" / "classifier.log",
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        mem_mb=2000,
    params:
        job=job_of("classifier"),
        code=code_of("classifier"),
    shell:
        command("classifier")
