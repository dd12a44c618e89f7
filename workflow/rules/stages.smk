# One rule per stage, as ddpm/pipeline/stages.py has it.
for stage in STAGES.values():
    if stage.name in AGGREGATES or stage.name == "fidelity" or not stage.planned:
        continue

    rule:
        name:
            stage.name
        input:
            inputs_of(stage.name, stage.wildcard),
        output:
            PATHS.outputs(stage.name, name_of(stage)),
            PATHS.record(stage.name, name_of(stage)),
        log:
            PATHS.log(stage.name, name_of(stage)),
        priority: stage.priority
        conda:
            "../../envs/ddpm.yaml"
        threads: config["threads"] * stage.processes(config)
        resources:
            gpu=GPU * stage.gpu * stage.processes(config),
        params:
            stage=stage.name,
            job=job_of(stage.name, stage.wildcard),
            code=code_of(stage.name, stage.wildcard),
            device=device_of(stage),
        shell:
            command()


# All cells of one network, or the baselines: measuring one takes less time than starting a job.
rule fidelity:
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
        stage="fidelity",
        job=lambda wildcards: given(GRID.batch(wildcards.batch)[0], "fidelity", wildcards.batch),
        code=lambda wildcards: GRID.batch(wildcards.batch)[1],
        device=device_of(STAGES["fidelity"]),
    shell:
        command("--batch {wildcards.batch}")
