"""Scripts by which shells complete the words of a command."""

from collections.abc import Mapping, Sequence


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """For "bash", "zsh" or "fish": the commands of `reptrans`, and after each of them its words.

    `eval "$(reptrans completion bash)"` uses it.
    """
    if shell == "fish":
        lines = [f"complete -c reptrans -n __fish_use_subcommand -a '{' '.join(words)}'"]
        lines += [f"complete -c reptrans -n '__fish_seen_subcommand_from {name}' -a '{' '.join(own)}'"
                  for name, own in words.items()]  # fmt: skip
        return "\n".join(lines)
    cases = "\n".join(f'    {name}) words="{" ".join(own)}" ;;' for name, own in words.items())
    body = f"""_reptrans() {{
  local words="{" ".join(words)}"
  [ "$COMP_CWORD" -gt 1 ] && case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _reptrans reptrans"""
    return f"autoload -Uz compinit bashcompinit; compinit; bashcompinit\n{body}" if shell == "zsh" else body
