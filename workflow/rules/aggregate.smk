rule table:
    input:
        PATHS.record("data"),
        PATHS.record("classifier"),
        [PATHS.record("train", name) for name in GRID.networks],
        [PATHS.record("likelihood", name) for name in GRID.likelihoods],
        [PATHS.record("ode_likelihood", name) for name in GRID.ode_likelihoods],
        [PATHS.record("guide", name) for name in GRID.guides],
        [PATHS.record("sample", name) for name in GRID.runs],
        [PATHS.measured(batch) for batch in GRID.batches],
        published=PUBLISHED,
    output:
        report(PATHS.root / "table.csv", caption="../report/table.rst", category="Tables"),
        PATHS.root / "table.md",
        report(PATHS.root / "published.md", caption="../report/published.rst", category="Tables"),
        PATHS.root / "costs.csv",
    log:
        PATHS.root / "logs" / "table.log",
    conda:
        "../../envs/ddpm.yaml"
    threads: 1
    params:
        job=job_of("table"),
        code=code_of("table"),
    shell:
        command("table")


rule figures:
    input:
        PATHS.data,
        [PATHS.loss(name) for name in GRID.networks],
        [PATHS.samples(name) for name in GRID.runs],
        [PATHS.measured(batch) for batch in GRID.batches],
    output:
        *[
            report(PATHS.root / "figures" / f"{name}.png", caption=f"../report/{name}.rst", category="Figures")
            for name in PICTURES
        ],
        [PATHS.cell(name) / "samples.png" for name in GRID.runs],
    log:
        PATHS.root / "logs" / "figures.log",
    conda:
        "../../envs/ddpm.yaml"
    threads: 1
    params:
        job=job_of("figures"),
        code=code_of("figures"),
    shell:
        command("figures")
