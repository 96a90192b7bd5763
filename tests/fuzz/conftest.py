from fuzzing import REFUSED, WORKED, outcomes


def pytest_terminal_summary(terminalreporter):
    targets = sorted({target for target, _ in outcomes})
    if not targets:
        return
    rows = [("target", "inputs", REFUSED, WORKED)]
    for target in targets:
        refused, worked = outcomes[target, REFUSED], outcomes[target, WORKED]
        rows.append((target, refused + worked, refused, worked))
    first = [row for row in rows[1:] if ", " not in row[0]]  # the others try inputs of the first again
    rows.append(("all", *(sum(row[column] for row in first) for column in (1, 2, 3))))
    terminalreporter.section("hostile inputs")
    for row in rows:
        terminalreporter.line("{:40} {:>8} {:>8} {:>8}".format(*row))
