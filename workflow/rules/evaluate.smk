rule fidelity:
    input:
        PATHS.data,
        PATHS.classifier,
        PATHS.samples("{cell}"),
    output:
        PATHS.record("fidelity", "{cell}"),
    log:
        PATHS.root / "logs" / "fidelity" / "{cell}.log",
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        mem_mb=2000,
    params:
        job=job_of("fidelity", "cell"),
        code=code_of("fidelity", "cell"),
    shell:
        command("fidelity", config["device"])


rule baseline:
    input:
        PATHS.data,
        PATHS.classifier,
    output:
        PATHS.root / "baselines" / "{baseline}" / "fidelity.json",
    log:
        PATHS.root / "logs" / "fidelity" / "{baseline}.log",
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        mem_mb=2000,
    params:
        job=job_of("fidelity", "baseline"),
        code=code_of("fidelity", "baseline"),
    shell:
        command("fidelity", config["device"])


rule likelihood:
    input:
        PATHS.data,
        PATHS.weights("{network}"),
    output:
        PATHS.record("likelihood", "{network}"),
    log:
        PATHS.root / "logs" / "likelihood" / "{network}.log",
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        mem_mb=2000,
    params:
        job=job_of("likelihood", "network"),
        code=code_of("likelihood", "network"),
    shell:
        command("likelihood", config["device"])
