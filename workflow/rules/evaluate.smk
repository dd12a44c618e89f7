rule fidelity:
    # All cells of one network, or the baselines: measuring one takes less time than starting a job.
    input:
        inputs_of("fidelity", "batch"),
    output:
        PATHS.measured("{batch}"),
    log:
        PATHS.log("fidelity", "{batch}"),
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        gpu=GPU,
    params:
        job=lambda wildcards: canonical(GRID.batch(wildcards.batch)[0]),
        code=lambda wildcards: GRID.batch(wildcards.batch)[1],
        device=device_of,
    shell:
        command("fidelity", "{params.device}", "--batch {wildcards.batch}")


rule likelihood:
    input:
        inputs_of("likelihood", "network"),
    output:
        PATHS.outputs("likelihood", "{network}"),
        PATHS.record("likelihood", "{network}"),
    log:
        PATHS.log("likelihood", "{network}"),
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        gpu=GPU,
    params:
        job=job_of("likelihood", "network"),
        code=code_of("likelihood", "network"),
        device=device_of,
    shell:
        command("likelihood", "{params.device}")


rule ode_likelihood:
    input:
        inputs_of("ode_likelihood", "network"),
    output:
        PATHS.outputs("ode_likelihood", "{network}"),
        PATHS.record("ode_likelihood", "{network}"),
    log:
        PATHS.log("ode_likelihood", "{network}"),
    conda:
        "../../envs/ddpm.yaml"
    threads: config["threads"]
    resources:
        gpu=GPU,
    params:
        job=job_of("ode_likelihood", "network"),
        code=code_of("ode_likelihood", "network"),
        device=device_of,
    shell:
        command("ode_likelihood", "{params.device}")
