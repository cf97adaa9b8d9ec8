"""What CloudFormation makes of a template's intrinsic functions, as far as the checks beside this file need it."""

import re
from pathlib import Path

from samcli.yamlhelper import yaml_parse

PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::NoValue": None,
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-3",
    "AWS::StackName": "token-refresh",
    "AWS::URLSuffix": "amazonaws.com",
}

# By the type of a resource, what stands behind arn:aws: in its ARN.
ARNS = {
    "AWS::CloudWatch::Alarm": "cloudwatch:eu-west-3:123456789012:alarm:{}",
    "AWS::Events::EventBus": "events:eu-west-3:123456789012:event-bus/{}",
    "AWS::Events::Rule": "events:eu-west-3:123456789012:rule/{}",
    "AWS::IAM::ManagedPolicy": "iam::123456789012:policy/{}",
    "AWS::IAM::Role": "iam::123456789012:role/{}",
    "AWS::Lambda::Function": "lambda:eu-west-3:123456789012:function:{}",
    "AWS::Logs::LogGroup": "logs:eu-west-3:123456789012:log-group:{}:*",
    "AWS::Scheduler::ScheduleGroup": "scheduler:eu-west-3:123456789012:schedule-group/{}",
    "AWS::SecretsManager::Secret": "secretsmanager:eu-west-3:123456789012:secret:{}-a1b2c3",
    "AWS::SNS::Topic": "sns:eu-west-3:123456789012:{}",
    "AWS::SQS::Queue": "sqs:eu-west-3:123456789012:{}",
}

# What Ref gives of these is their ARN; of others, what they are called.
BY_ARN = {"AWS::IAM::ManagedPolicy", "AWS::SecretsManager::Secret", "AWS::SNS::Topic"}


class Template:
    """With these values of parameters; every Fn::If takes its first branch, or its second."""

    def __init__(self, path: str, branch: int, parameters: dict[str, str] | None = None):
        source = yaml_parse(Path(path).read_text(encoding="utf-8"))
        self.source = source.get("Resources", {})
        self.branch = branch
        self.parameters = {name: str(given.get("Default", "")) for name, given in source.get("Parameters", {}).items()}
        self.parameters.update(parameters or {})

    def resources(self) -> dict[str, dict]:
        return {name: self.resolved(resource) for name, resource in self.source.items()}

    def arn(self, name: str) -> str:
        return "arn:aws:" + ARNS[self.source[name]["Type"]].format(name)

    def ref(self, name: str):
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.parameters:
            return self.parameters[name]
        return self.arn(name) if self.source[name]["Type"] in BY_ARN else name

    def attribute(self, name: str, attribute: str) -> str:
        return self.arn(name) if attribute == "Arn" else f"{name}.{attribute}"

    def sub(self, name: str) -> str:
        return self.attribute(*name.split(".", 1)) if "." in name else self.ref(name)

    def resolved(self, value):
        if isinstance(value, list):
            return [element for element in map(self.resolved, value) if element is not None]
        if not isinstance(value, dict):
            return value
        match next(iter(value.items()), None):
            case ("Ref", name):
                return self.ref(name)
            case ("Fn::GetAtt", [name, attribute]):
                return self.attribute(name, attribute)
            case ("Fn::Sub", str(text)):
                return re.sub(r"\$\{([\w:.]+)\}", lambda found: self.sub(found[1]), text)
            case ("Fn::If", [_, *branches]):
                return self.resolved(branches[self.branch])
        members = {name: self.resolved(member) for name, member in value.items()}
        return {name: member for name, member in members.items() if member is not None}
