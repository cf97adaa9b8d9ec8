#!/bin/bash
# A Lambda function for the tests of the gateway. It answers with its process, its name and the event's path; some paths
# ask for something else.
set -eu
LC_ALL=C # lengths are in bytes

# Calls the Runtime API. The answer's body is then in $body, and the id that came with it in $id.
call() {
    local line length=0
    exec 3<>"/dev/tcp/${AWS_LAMBDA_RUNTIME_API/://}"
    printf '%s /2018-06-01/runtime/invocation/%s HTTP/1.1\r\nHost: api\r\nContent-Length: %d\r\n\r\n%s' \
        "$1" "$2" "${#3}" "$3" >&3
    while IFS= read -r line <&3 && line=${line%$'\r'} && [[ -n $line ]]; do
        case ${line,,} in
        lambda-runtime-aws-request-id:*) id=${line#*: } ;;
        content-length:*) length=${line#*: } ;;
        esac
    done
    IFS= read -r -N "$length" body <&3 || true
    exec 3>&-
}

while true; do
    call GET next ''
    [[ $body =~ \"rawPath\":\"([^\"]*)\" ]] && path=${BASH_REMATCH[1]}
    [[ $body =~ \"rawQueryString\":\"([^\"]*)\" ]] && query=${BASH_REMATCH[1]}
    answer="{\"statusCode\":200,\"body\":\"$$ ${NAME-} $path\"}"
    case $path in
    /ended) exit 1 ;;
    /error) call POST "$id/error" '{"errorType":"Local","errorMessage":"on purpose"}' && continue ;;
    /event) answer=$body ;;
    /malformed) answer='{"statusCode":"200"}' ;;
    /held) # until whoever listens on the port in the query says so; the connection stays for as long as the process
        exec 4<>"/dev/tcp/127.0.0.1/$query"
        IFS= read -r _ <&4
        ;;
    esac
    call POST "$id/response" "$answer"
done
