rule table:
    input:
        inputs_of("table"),
    output:
        report(PATHS.root / "table.csv", caption="../report/table.rst", category="Tables"),
        PATHS.root / "table.md",
        report(PATHS.root / "published.md", caption="../report/published.rst", category="Tables"),
        report(PATHS.root / "claims.md", caption="../report/claims.rst", category="Tables"),
        PATHS.root / "claims.csv",
        PATHS.root / "differences.csv",
        PATHS.root / "costs.csv",
        [path for path in PATHS.outputs("table") if path.parent.name == "tables"],
        PATHS.record("table"),
    log:
        PATHS.log("table"),
    conda:
        "../../envs/ddpm.yaml"
    threads: 1
    params:
        stage="table",
        job=job_of("table"),
        code=code_of("table"),
        device="cpu",
    shell:
        command()


rule figures:
    input:
        inputs_of("figures"),
    output:
        *[
            report(PATHS.root / "figures" / f"{name}.png", caption=f"../report/{name}.rst", category="Figures")
            for name in GRID.pictures
        ],
        [path for path in PATHS.pictures(GRID.pictures, []) if path.suffix == ".svg"],
        [PATHS.cell(name) / "samples.png" for name in GRID.runs],
        PATHS.record("figures"),
    log:
        PATHS.log("figures"),
    conda:
        "../../envs/ddpm.yaml"
    threads: 1
    params:
        stage="figures",
        job=job_of("figures"),
        code=code_of("figures"),
        device="cpu",
    shell:
        command()


rule page:
    input:
        inputs_of("page"),
    output:
        PATHS.outputs("page"),
        PATHS.record("page"),
    log:
        PATHS.log("page"),
    conda:
        "../../envs/ddpm.yaml"
    threads: 1
    params:
        stage="page",
        job=job_of("page"),
        code=code_of("page"),
        device="cpu",
    shell:
        command()
