rule sample:
    input:
        inputs_of("sample", "cell"),
    output:
        images=PATHS.samples("{cell}"),
        record=PATHS.record("sample", "{cell}"),
    log:
        PATHS.log("sample", "{cell}"),
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        mem_mb=2000,
        gpu=GPU,
    params:
        job=job_of("sample", "cell"),
        code=code_of("sample", "cell"),
    shell:
        command("sample", config["device"])
