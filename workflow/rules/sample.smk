rule sample:
    input:
        PATHS.data,
        weights_of,
    output:
        images=PATHS.samples("{cell}"),
        record=PATHS.record("sample", "{cell}"),
    log:
        PATHS.root / "logs" / "sample" / "{cell}.log",
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
