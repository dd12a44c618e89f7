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
        gpu=GPU,
    params:
        job=job_of("sample", "cell"),
        code=code_of("sample", "cell"),
        device=device_of,
    shell:
        command("sample", "{params.device}")
