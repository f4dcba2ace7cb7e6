"""The second half of `scripts/mutants`: weaves the mutants into one build and runs the tests for each.

Called in the folder of the packages, whose files it changes. The mutants of the code are those that
`cargo mutants --list` tells. Each stands beside the original, chosen by a number that the test
binary reads from SQJOBS_MUTANT, so that all of them take one build, not one each. What can't stand
so, or doesn't compile, is counted and left out.

The statements are mutated when they are run (SQJOBS_MUTANT_FROM, SQJOBS_MUTANT_TO), a guard at a time:
- each condition always holds: `token = $2` becomes `(token = $2 OR 1 = 1)`;
- a column that is set to a constant keeps its value: `alone = 0` becomes `alone = alone`;
- `ON CONFLICT ... DO NOTHING` and the locks are gone.
"""

import collections
import json
import os
import re
import subprocess
import sys
import tempfile

import tree_sitter
import tree_sitter_rust

TIMEOUT = 60
# Which of the files store_* of tests/it is about a file of the store, where their names differ.
NEAREST = {"enqueue": "outbox", "finish": "claims", "kept": "modules", "lost": "dead", "migrate": "schema",
           "park": "groups", "pause": "queues", "resend": "dead"}
CRATES = {"pure": "mutants-of-pure", "store": "mutants-of-store"}
parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))


# ---- The code ----


def listed(arguments):
    command = ["cargo", "mutants", "--list", "--json", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def offset(lines, place):
    """Where a line and column, both from 1, stand in the text."""
    return sum(len(line) for line in lines[: place["line"] - 1]) + place["column"] - 1


def node_at(root, start, end, kinds):
    """The innermost node of one of these kinds around a span."""
    node = root.descendant_for_byte_range(start, end)
    while node and node.type not in kinds:
        node = node.parent
    return node


def is_const(node):
    """Whether it is worked out by the compiler, which knows no variables."""
    while node:
        head = node.children[0].text if node.children else b""
        if node.type in ("const_item", "static_item") or (node.type == "function_item" and b"const" in head):
            return True
        node = node.parent
    return False


def has_let(node):
    return node.type == "let_condition" or any(has_let(child) for child in node.children)


Edit = collections.namedtuple("Edit", "start end kind number text")


def edit_of(root, lines, mutant, number):
    """What to change where so that a mutant can be chosen; `None` if it can't."""
    start, end = (offset(lines, mutant["span"][side]) for side in ("start", "end"))
    genre, text = mutant["genre"], mutant["replacement"]
    if genre == "FnValue":
        node = node_at(root, start, end, ("function_item",))
        body = node and node.child_by_field_name("body")
        if not body or is_const(body):
            return None
        at = body.start_byte + 1
        return Edit(at, at, "insert", number, f" if crate::mutant::is({number}) {{ return {text}; }}\n")
    if genre in ("BinaryOperator", "UnaryOperator"):
        kinds = ("binary_expression",) if genre == "BinaryOperator" else ("unary_expression",)
        node = node_at(root, start, end, kinds)
        if not node or is_const(node) or has_let(node) or node.parent.type == "let_chain":
            return None
        return Edit(node.start_byte, node.end_byte, "operator", number, (start, end, text))
    if genre in ("MatchArmGuard", "MatchArm"):
        arm = node_at(root, start, end, ("match_arm",))
        pattern = arm and arm.child_by_field_name("pattern")
        if not pattern or is_const(arm):
            return None
        guard = pattern.child_by_field_name("condition")
        if guard and has_let(guard):
            return None
        if genre == "MatchArm" and not guard:
            at = pattern.end_byte
            return Edit(at, at, "insert", number, f" if !crate::mutant::is({number})")
        word = {"true": "true", "false": "false"}.get(text, "false")
        return Edit(guard.start_byte, guard.end_byte, "guard", number, word)
    return None


def woven(source, edits):
    """The text with all of the edits, the inner ones within the outer ones."""

    def render(start, end, inner):
        out, at = [], start
        while inner:
            outer = max((e for e in inner if e.start == min(i.start for i in inner)), key=lambda e: (e.end - e.start, e.kind == "insert"))
            if outer.start == outer.end:
                same = [e for e in inner if (e.start, e.end) == (outer.start, outer.end)]
                out += [source[at : outer.start], *(e.text for e in same)]
                at, inner = outer.end, [e for e in inner if e not in same]
                continue
            same = [e for e in inner if (e.start, e.end) == (outer.start, outer.end)]
            within = [e for e in inner if e not in same and outer.start <= e.start and e.end <= outer.end]
            original = render(outer.start, outer.end, within)
            text = original
            for edit in same:
                if edit.kind == "guard":
                    text = f"if crate::mutant::is({edit.number}) {{ {edit.text} }} else {{ {text} }}"
                else:
                    first, last, new = edit.text
                    left = render(outer.start, first, [e for e in within if e.end <= first])
                    right = render(last, outer.end, [e for e in within if e.start >= last])
                    text = f"if crate::mutant::is({edit.number}) {{ {left}{new}{right} }} else {{ {text} }}"
            out += [source[at : outer.start], f"(({text}))"]
            at, inner = outer.end, [e for e in inner if e not in same and e not in within]
        out.append(source[at:end])
        return "".join(out)

    return render(0, len(source), list(edits))


def weave(mutants, left_out):
    """Writes the files with the mutants in them, but for those that are left out."""
    by_file = collections.defaultdict(list)
    for number, mutant in enumerate(mutants):
        by_file[mutant["file"]].append((number, mutant))
    for file, numbered in by_file.items():
        source = ORIGINALS.setdefault(file, open(file).read())
        # Columns count characters; so do offsets here, as if every character were a byte.
        plain = "".join(c if ord(c) < 128 else "?" for c in source)
        root = parser.parse(plain.encode()).root_node
        lines = source.splitlines(keepends=True)
        edits = []
        for number, mutant in numbered:
            if number in left_out:
                continue
            edit = edit_of(root, lines, mutant, number)
            if edit is None:
                left_out[number] = "can't be woven in"
            else:
                edits.append(edit)
        with open(file, "w") as out:
            out.write(woven(source, edits))


ORIGINALS = {}


def build(package, mutants, left_out):
    """The test binary, once what does not compile is left out."""
    while True:
        weave(mutants, left_out)
        command = ["cargo", "test", "-p", CRATES[package], "--lib", "--no-run", "--message-format=json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode == 0:
            return [message["executable"] for message in messages if message.get("executable")][0]
        found = set()
        for message in messages:
            message = message.get("message") or {}
            if message.get("level") == "error":
                for span in message["spans"]:
                    if span["is_primary"] and os.path.exists(span["file_name"]):
                        text = open(span["file_name"]).read().splitlines()[span["line_start"] - 1]
                        before = re.findall(r"mutant::is\((\d+)\)", text[: span["column_start"]])
                        after = re.findall(r"mutant::is\((\d+)\)", text)
                        found |= {int(number) for number in (before[-1:] or after[:1])}
        found -= left_out.keys()
        if not found:
            errors = [m["message"].get("rendered", "") for m in messages if (m.get("message") or {}).get("level") == "error"]
            sys.exit("the packages don't compile:\n" + "\n".join(errors[:3]))
        left_out |= {number: "does not compile" for number in found}


# ---- The statements ----

# Where a condition ends.
END = re.compile(r" AND | OR | ORDER BY | GROUP BY | LIMIT | RETURNING | THEN | ON CONFLICT | ?\{for_update| ?\{skip_locked|\)")
CONSTANT = r"(?<=[ ,])(\w+) = (?:NULL|-?\d+|\{now\}|\{instant\}|'\w+'|(?:\w+\.)?\w+ \+ 1)(?=, | WHERE | FROM )"
ADDED = (r" ON CONFLICT (?:\([^)]*\) )?DO NOTHING", r" ?\{for_update\}", r" ?\{skip_locked\}", " FOR UPDATE OF j")


def condition_end(text, start):
    """The end of the condition that begins at `start`; what stands in brackets is part of it."""
    depth, at = 0, start
    while at < len(text) and not (depth == 0 and END.match(text, at)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return at


def statement_mutants(text):
    for found in re.finditer(r" (?:WHERE|AND|OR|WHEN) ", text):
        start, end = found.end(), condition_end(text, found.end())
        yield f"{text[:start]}({text[start:end]} OR 1 = 1){text[end:]}", "always: " + text[start:end]
    if found := re.search(r"UPDATE \S+(?: AS (\w+))? SET ", text):
        prefix = found[1] + "." if found[1] else ""
        for column in re.finditer(CONSTANT, text[found.end() - 1 :]):
            start, end = (found.end() - 1 + at for at in column.span())
            yield f"{text[:start]}{column[1]} = {prefix}{column[1]}{text[end:]}", "not set: " + column[0]
    for word in ADDED:
        if found := re.search(word, text):
            yield text[: found.start()] + text[found.end() :], "without:" + found[0]


def statements(binary):
    with tempfile.TemporaryDirectory() as folder:
        seen = os.path.join(folder, "seen")
        check(binary, SQJOBS_MUTANT_SEEN=seen)
        with open(seen) as lines:
            texts = {re.sub(r"\b\d{13}\b", "{instant}", json.loads(line)) for line in lines}
    texts = sorted(texts, key=lambda text: (len(text), text))
    # Of those that differ in their number of rows, the shortest.
    rows = re.compile(r"\((?:\$\d+, )*\$\d+\)(?:, \([^()]*\))*")
    return list({rows.sub("(rows)", text): text for text in reversed(texts)}.values())


# ---- Running ----


INVALID = re.compile(r"syntax error|is ambiguous|ambiguous column|could not determine data type|must be type boolean")


# What a machine that is busy with other things looks like, and some mutants too.
SLOW = re.compile(r"within 20 s|PoolTimedOut|pool timed out")


def failures(binary, filters, more):
    """The tests that fail, or why there is no telling; none if all is well."""
    for tries_left in (2, 1, 0):
        try:
            done = subprocess.run([binary, *filters], env={**os.environ, **more}, timeout=TIMEOUT,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace")
        except subprocess.TimeoutExpired:
            return ["timeout"]
        if done.returncode == 0:
            return []
        if INVALID.search(done.stdout):
            return ["the statement is not valid"]
        failed = re.findall(r"^test (\S+) \.\.\. FAILED", done.stdout, re.M) or ["crash"]
        slow = len(SLOW.findall(done.stdout))
        if slow < len(failed) or not tries_left:
            return failed


def first_failures(binary, more, about):
    """On SQLite first, which is quicker, then on PostgreSQL; what is about the file before the rest."""
    if "mutants_of_pure" in os.path.basename(binary):
        return failures(binary, [], more)
    skip = ["--skip", "::postgres", "--skip", "beater::"]
    if "periodic" in about:
        near = ["store_beaters", "store_entries", "periodic"]
    else:
        skip += ["--skip", "periodic_store"]
        stem = os.path.basename(about).removesuffix(".rs")
        near = [f"store_{NEAREST.get(stem, stem)}", f"store::{stem}"]
    return failures(binary, near + skip, more) or failures(binary, skip, more) or failures(binary, ["::postgres"], more)


def check(binary, **more):
    if failed := failures(binary, [], more):
        sys.exit(f"tests fail without any change: {failed}")


def report(name, failed):
    print("MISSED" if not failed else f"caught {len(failed)}", "|", name, "|", *failed[:2], flush=True)
    return bool(failed)


def mutate_code(arguments):
    for package in CRATES:
        mutants = [mutant for mutant in listed(arguments) if mutant["file"].startswith(package + "/")]
        if not mutants:
            continue
        left_out = {}
        binary = build(package, mutants, left_out)
        check(binary)
        counts = collections.defaultdict(collections.Counter)
        for number, mutant in enumerate(mutants):
            file = mutant["file"].removeprefix(f"{package}/src/")
            if number in left_out:
                counts[file][left_out[number]] += 1
                print(left_out[number], "|", mutant["name"], flush=True)
                continue
            failed = first_failures(binary, {"SQJOBS_MUTANT": str(number)}, file)
            counts[file]["caught" if report(mutant["name"], failed) else "MISSED"] += 1
        for file, count in counts.items():
            print(file, dict(count), flush=True)


def mutate_statements(words):
    binary = build("store", [], {})
    count = collections.Counter()
    for text in statements(binary):
        if not all(word in text for word in words):
            continue
        for changed, what in statement_mutants(text):
            failed = first_failures(binary, {"SQJOBS_MUTANT_FROM": text, "SQJOBS_MUTANT_TO": changed}, text)
            count["caught" if report(f"{what} | {text[:90]}", failed) else "MISSED"] += 1
    print("statements", dict(count))


if sys.argv[1:2] == ["--sql"]:
    mutate_statements(sys.argv[2:])
else:
    mutate_code(sys.argv[1:])
