"""Has parliament check every IAM policy of templates: what roles may do, who may assume them, who may use a resource.

Usage: python policies.py TEMPLATE..., where SAM's own resources are translated already.
"""

import json
import sys
import warnings

from resolved import Template

warnings.filterwarnings("ignore", "pkg_resources is deprecated")
import parliament  # noqa: E402

# The ARN of what exists already, by the end of the parameter's name.
EXISTING = {
    "SecretArn": "arn:aws:secretsmanager:eu-west-3:123456789012:secret:existing-a1b2c3",
    "KeyArn": "arn:aws:kms:eu-west-3:123456789012:key/6f9619ff-8b86-4011-b42d-00c04fc964ff",
}

# The findings that are not followed: the resource, the finding, how its details begin, and why.
MUTED = [
    # The function names the role of the schedules that it makes. It may name only that one, and only to EventBridge Scheduler.
    ("RefreshPolicy", "PERMISSIONS_MANAGEMENT_ACTIONS", "iam:passrole"),
    # The network interface that Lambda makes does not exist before, so it has no ARN.
    ("NetworkPolicy", "RESOURCE_STAR", "ec2:AssignPrivateIpAddresses ec2:CreateNetworkInterface"),
    # AWS documents this key for calls that a function's code makes, whatever the action ("Using source function ARN to
    # control function access behavior", Lambda's guide); parliament knows only the keys of each action.
    ("NetworkPolicy", "UNKNOWN_CONDITION_FOR_ACTION", "Unknown condition lambda:SourceFunctionArn for action ec2:"),
]


def policies(value, path: str):
    """Every policy document in a resource, with where it stands."""
    if isinstance(value, dict) and "Statement" in value:
        yield path, value
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from policies(member, f"{path}.{name}")
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from policies(element, f"{path}[{index}]")


def findings(policy: dict, role: str | None) -> set[tuple[str, str]]:
    """Each with its details. For a policy that says who may assume a role, `role` is that one's ARN."""
    if role:
        # It names no resource: that is the role itself. The community's checks are for what a role may do.
        policy = {**policy, "Statement": [{**statement, "Resource": role} for statement in policy["Statement"]]}
    found = parliament.analyze_policy_string(json.dumps(policy), include_community_auditors=not role).findings
    details = [finding.detail or finding.location.get("actions") or finding.location.get("string") for finding in found]
    texts = [" ".join(map(str, detail)) if isinstance(detail, list) else str(detail) for detail in details]
    # parliament looks no further where all actions are named.
    named = [statement.get("Action") for statement in policy["Statement"] if statement.get("Effect") == "Allow"]
    wide = {("ALL_ACTIONS", "*") for actions in named if actions == "*" or isinstance(actions, list) and "*" in actions}
    return wide | {(finding.issue, text) for finding, text in zip(found, texts)}


def main(paths: list[str]) -> None:
    faults, used, checked = set(), set(), set()
    for path in paths:
        for branch in (0, 1):
            template = Template(path, branch)
            for name in template.parameters:
                template.parameters[name] = next(
                    (arn for end, arn in EXISTING.items() if name.endswith(end)), template.parameters[name]
                )
            for name, resource in template.resources().items():
                for where, policy in policies(resource.get("Properties"), name):
                    checked.add((path, where))
                    role = template.arn(name) if where.endswith(".AssumeRolePolicyDocument") else None
                    for issue, details in findings(policy, role):
                        muted = [mute for mute in MUTED if mute[:2] == (name, issue) and details.startswith(mute[2])]
                        used.update(muted)
                        if not muted:
                            faults.add(f"{path}: {where}: {issue}: {details}")
    faults.update(f"muted for nothing: {' '.join(mute)}" for mute in MUTED if mute not in used)
    print(*sorted(faults), f"parliament: {len(checked)} policies, {len(faults)} faults", sep="\n")
    sys.exit(bool(faults) or not checked)


main(sys.argv[1:])
