# shellcheck shell=bash disable=SC2034
# Functions shared by the launchers; sourced, not run.
#
# Options are `--name value` or `--name=value`. What follows `--` is passed to training.

shopt -s inherit_errexit # an error in $(...) ends the launcher too
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) # the repository
dry_run='' command='' train=()
declare -A option=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# usage: prints the comment at the top of the launcher.
usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

# parse "commands" "options with a value" "switches" ARGUMENTS
# Sets command, option[name], dry_run and train.
parse() {
  local commands=$1 valued=$2 switches="dry-run $3" name value
  shift 3
  if (($# == 0)) || [[ " $* " == *" --help "* && " ${*%% -- *} " == *" --help "* ]]; then
    usage
    exit 0
  fi
  command=$1
  shift
  [[ " $commands " == *" $command "* ]] ||
    fail "$command: unknown command; choose one of ${commands// /, }"
  while (($#)); do
    [ "$1" != -- ] || { shift && train=("$@") && break; }
    [[ $1 == --* ]] || fail "$1: options begin with --; arguments of training follow --"
    name=${1#--} && name=${name%%=*}
    if [[ " $switches " == *" $name "* ]]; then
      [[ $1 != *=* ]] || fail "--$name takes no value"
      option[$name]=1
    elif [[ " $valued " == *" $name "* ]]; then
      if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2-} && shift; fi
      [ -n "$value" ] || fail "--$name needs a value"
      option[$name]=$value
    else
      fail "--$name: unknown option of ${0##*/}; options:" \
        "--${valued// / --} --${switches// / --}; arguments of training follow --"
    fi
    shift
  done
  dry_run=${option[dry-run]-}
}

# need NAME...: fails if an option is missing.
need() {
  local name
  for name in "$@"; do [ -n "${option[$name]-}" ] || fail "$command needs --$name"; done
}

# number NAME: fails if an option is given and not a positive integer.
number() {
  local value=${option[$1]-1}
  [[ $value =~ ^[1-9][0-9]{0,5}$ ]] || fail "--$1 $value must be an integer, 1 or more"
}

# resource_name NAME: fails if an option is not a valid name for clouds and clusters.
resource_name() {
  [[ ${option[$1]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--$1 ${option[$1]} must be at most 40 lower-case letters, digits and dashes," \
      "beginning with a letter"
}

# call COMMAND...: runs a command; with --dry-run prints it, quoted for a shell.
call() {
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

# show WORDS: prints the words on one line, quoted for a shell.
show() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}
