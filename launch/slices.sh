# shellcheck shell=bash
# Names of TPU slices, as --mode=plan takes them: v5e-16, v5litepod-16 and v5e:4x4 are one.

shapes_of() { # shapes_of GENERATION: prints those of diffusion_jax/planning/chips.py (a test compares them).
  case $1 in
    v5e | v6e) echo 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 ;;
    v4 | v5p) echo 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 ;;
    *) return 1 ;;
  esac
}

find_slice() { # find_slice NAME: prints its generation, shape and Google's name; if there is none, why, status 1.
  local wanted=${1/#v5litepod/v5e} generation=${1%%[:-]*} shape shapes size number="" near="" gap=0 best=0
  generation=${generation/#v5litepod/v5e}
  if ! shapes=$(shapes_of "$generation"); then
    echo "'$1' is not a slice of v4, v5e, v5p or v6e, named as v5e-16, v5litepod-16 or v5e:4x4"
    return 1
  fi
  [[ ! $wanted =~ -([1-9][0-9]{0,5})$ ]] || number=${BASH_REMATCH[1]}
  [[ ! $wanted =~ :([1-9][0-9]?(x[1-9][0-9]?)+)$ ]] || number=$((${BASH_REMATCH[1]//x/*} * $(cores "$generation")))
  for shape in $shapes; do
    size=$((${shape//x/*} * $(cores "$generation")))
    if [[ $wanted == "$generation:$shape" || $wanted == "$generation-$size" ]]; then
      echo "$generation $shape ${generation/#v5e/v5litepod}-$size"
      return
    fi
    gap=$((size - ${number:-0}))
    gap=${gap#-}
    [[ -n $near && $gap -ge $best ]] || near="$generation-$size ($generation:$shape)" best=$gap
  done
  echo "'$1' is not a slice of $generation; did you mean $near?"
  return 1
}

cores() { # cores GENERATION: prints how many of them a chip has in Google's names of slices.
  case $1 in v4 | v5p) echo 2 ;; *) echo 1 ;; esac
}
