"""Prints the template as the emulator gets it: template.yaml, and every way in which that differs, with its reason.

Usage: python adapt.py ZIPS NAME=VALUE...: the directory of the built functions, and variables that every function gets.
"""

import sys
from pathlib import Path

from samcli.yamlhelper import yaml_dump, yaml_parse


def with_built_code(template: dict, zips: Path) -> None:
    """Reason: what is built is deployed as it is, without a `sam build` that would build it again."""
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            binary = resource["Metadata"]["BuildProperties"]["Binary"]
            resource["Properties"]["CodeUri"] = str(zips / binary / "bootstrap.zip")


def with_variables(template: dict, variables: dict[str, str]) -> None:
    """Reason: Twitch and the push services are simulated ones on this machine, and nothing on AWS says where those are."""
    environment = template["Globals"]["Function"].setdefault("Environment", {})
    environment.setdefault("Variables", {}).update(variables)


def with_arns_of_secrets(value, secrets: set[str]):
    """Reason: a reference to a secret is its ARN on AWS and its name in the emulator, where no policy would then match."""
    if isinstance(value, list):
        return [with_arns_of_secrets(element, secrets) for element in value]
    if not isinstance(value, dict):
        return value
    if value.get("Ref") in secrets:
        return {"Fn::GetAtt": [value["Ref"], "Id"]}
    return {name: with_arns_of_secrets(member, secrets) for name, member in value.items()}


def with_schedules_in_the_default_group(template: dict) -> None:
    """Reason: the emulator takes every schedule that is made for one of the default group when it asks the policy."""
    for statement in template["Resources"]["RefreshPolicy"]["Properties"]["PolicyDocument"]["Statement"]:
        if statement["Action"] == "scheduler:CreateSchedule":
            arn = statement["Resource"]["Fn::Sub"]
            statement["Resource"] = [{"Fn::Sub": arn}, {"Fn::Sub": arn.replace("${RetryGroup}", "default")}]


def without_metric_math(template: dict) -> None:
    """Reason: the emulator refuses alarms over an expression. The others, and the topic, are deployed."""
    for name, resource in list(template["Resources"].items()):
        if resource["Type"] == "AWS::CloudWatch::Alarm" and "Metrics" in resource["Properties"]:
            del template["Resources"][name]
            print(f"left out, for the emulator knows no metric math: {name}", file=sys.stderr)


template = yaml_parse(Path("template.yaml").read_text(encoding="utf-8"))
with_built_code(template, Path(sys.argv[1]))
with_variables(template, dict(variable.split("=", 1) for variable in sys.argv[2:]))
secrets = {name for name, resource in template["Resources"].items() if resource["Type"] == "AWS::SecretsManager::Secret"}
with_schedules_in_the_default_group(template)
template = with_arns_of_secrets(template, secrets)
without_metric_math(template)
print(yaml_dump(template))
