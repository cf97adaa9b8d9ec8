"""Prints the CloudFormation template that AWS will make of our template.yaml, for tools that don't know SAM.

Usage: python translate.py TEMPLATE. Needs neither credentials nor built functions: the code is said to lie in a bucket,
and AWS's list of managed policies, which the template uses none of, stays empty.
"""

import json
import sys

from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator


class NoManagedPolicies:
    def load(self) -> dict[str, str]:
        return {}


with open(sys.argv[1], encoding="utf-8") as file:
    template = yaml_parse(file.read())
for resource in template["Resources"].values():
    if resource["Type"] == "AWS::Serverless::Function":
        resource["Properties"]["CodeUri"] = {"Bucket": "artifacts", "Key": "function.zip"}
translator = Translator(NoManagedPolicies().load(), Parser())
print(json.dumps(translator.translate(template, parameter_values={}), indent=2))
