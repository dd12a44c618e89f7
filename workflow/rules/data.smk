rule data:
    input:
        inputs_of("data"),
    output:
        images=PATHS.data,
        record=PATHS.record("data"),
    log:
        PATHS.log("data"),
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    params:
        job=job_of("data"),
        code=code_of("data"),
    shell:
        command("data")


rule classifier:
    input:
        inputs_of("classifier"),
    output:
        weights=PATHS.classifier,
        record=PATHS.record("classifier"),
    log:
        PATHS.log("classifier"),
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    params:
        job=job_of("classifier"),
        code=code_of("classifier"),
    shell:
        command("classifier")
