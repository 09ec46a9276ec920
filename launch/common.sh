# shellcheck shell=bash disable=SC2034
# What the launchers share; sourced, not run. Options are `--name value` or `--name=value`, up to `--`; what follows goes to training as it is.

shopt -s inherit_errexit # an error within $(...) ends the launcher too
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) # the repository
dry_run='' command='' train=()
declare -A option=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# usage: the comment at the top of the launcher.
usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

# parse "commands" "options with a value" "switches" WORDS: sets command, option[name], dry_run, train.
parse() {
  local commands=$1 valued=$2 switches="dry-run $3" name value
  shift 3
  if (($# == 0)) || [[ " $* " == *" --help "* && " ${*%% -- *} " == *" --help "* ]]; then
    usage
    exit 0
  fi
  command=$1
  shift
  [[ " $commands " == *" $command "* ]] || fail "$command: is no command; choose one of ${commands// /, }"
  while (($#)); do
    [ "$1" != -- ] || { shift && train=("$@") && break; }
    [[ $1 == --* ]] || fail "$1: options begin with --, and what training is told comes after --"
    name=${1#--} && name=${name%%=*}
    if [[ " $switches " == *" $name "* ]]; then
      [[ $1 != *=* ]] || fail "--$name takes no value"
      option[$name]=1
    elif [[ " $valued " == *" $name "* ]]; then
      if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2-} && shift; fi
      [ -n "$value" ] || fail "--$name needs a value"
      option[$name]=$value
    else
      fail "--$name: is no option of ${0##*/}; what training is told comes after --. The options: --${valued// / --} --${switches// / --}"
    fi
    shift
  done
  dry_run=${option[dry-run]-}
}

# need NAME...: options without which there is nothing to do.
need() {
  local name
  for name in "$@"; do [ -n "${option[$name]-}" ] || fail "$command needs --$name"; done
}

# number NAME: a positive whole number, where it is given.
number() {
  local value=${option[$1]-1}
  [[ $value =~ ^[1-9][0-9]{0,5}$ ]] || fail "--$1 $value must be a whole number, 1 or more"
}

# named NAME: what clouds and clusters take as a name.
named() {
  [[ ${option[$1]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--$1 ${option[$1]} must be at most 40 lower-case letters, digits and dashes, beginning with a letter"
}

# call WORDS: runs a command; with --dry-run prints it, quoted for a shell.
call() {
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

# show WORDS: one line that a shell reads back as the same words.
show() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}
