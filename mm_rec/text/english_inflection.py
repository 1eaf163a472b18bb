"""The inflected forms of English words, by rule and by tables of what no rule gives.

The rules make forms of a word whatever it is: a verb's also of a noun, which then simply occur nowhere. Forms that
are other words ("news" of "new", "letter" of "let") are kept out by a table of words that take no ending, by one of
false forms, and by comparing (-er, -est) only the adjectives and adverbs of a list.
"""

from __future__ import annotations

import re


def inflections(word: str) -> frozenset[str]:
    """Return all forms of a word in small letters, itself included: "go" → go, goes, going, went, gone."""
    if word in _WITHOUT_ENDINGS:
        return frozenset({word, *_IRREGULAR.get(word, ())})
    found = {word, *_with_s(word), _with_ing(word), *_IRREGULAR.get(word, ())}
    if word not in _STRONG_VERBS:
        found.add(_with_ed(word))
    if word in _COMPARED:
        found |= _compared(word)
    if word[-1:] == "l" or word in _STRESSED_LAST:
        found |= {f"{word}{word[-1]}ed", f"{word}{word[-1]}ing"}  # travelled beside traveled, controlled
    return frozenset(found - _FALSE_FORMS.get(word, frozenset()))


def expand_contraction(token: str) -> tuple[str, ...]:
    """Return the words that a token in small letters stands for: "don't" → don't, do, not; "Tom's" → tom's, tom.

    'd is taken for "would", and 's for "is" after a pronoun, a question word, "here", "there" and "that", otherwise for
    a possessive; that they may be "had" and "has" is left aside. The token itself comes first.
    """
    token = token.replace("’", "'")
    if token in _CONTRACTIONS:
        return (token, *_CONTRACTIONS[token])
    if token.endswith("n't"):
        return (token, token[:-3], "not")
    host, mark, ending = token.rpartition("'")
    if not mark or (ending not in _ENDINGS and ending != "s"):
        return (token,)
    if ending == "s":
        return (token, host, "is") if host in _CONTRACTING else (token, host)
    return (token, host, *_ENDINGS[ending])


def _with_s(word: str) -> tuple[str, ...]:
    if _CONSONANT_Y.search(word):
        return (word[:-1] + "ies",)
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (word + "es",)
    if word.endswith("o"):
        return (word + "s", word + "es")
    return (word + "s",)


def _with_ed(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    if _CONSONANT_Y.search(word):
        return word[:-1] + "ied"
    return _doubled(word) + "ed"


def _with_ing(word: str) -> str:
    if word.endswith("ie"):
        return word[:-2] + "ying"
    if word.endswith("e") and not word.endswith(("ee", "oe", "ye")) and len(word) > 2:
        return word[:-1] + "ing"
    return _doubled(word) + "ing"


def _compared(word: str) -> set[str]:
    if _CONSONANT_Y.search(word):
        word = word[:-1] + "i"
    stem = word[:-1] if word.endswith("e") else _doubled(word)
    return {stem + "er", stem + "est"}


def _doubled(word: str) -> str:
    """Return the stem before -ed, -ing and -er: with its last consonant doubled after one short vowel."""
    if _SHORT.fullmatch(word):
        return word + word[-1]
    return word + "k" if word.endswith("ic") else word  # panicked


_CONSONANT_Y = re.compile(r"[^aeiou]y\Z")
_SHORT = re.compile(r"(?:[^aeiou]*|qu|squ)[aeiouy][^aeiouwxy]")


def _table(rows: str) -> dict[str, tuple[str, ...]]:
    """Parse a table: each word before its other forms, between dots."""
    split = (row.split() for row in rows.split("·"))
    return {word: tuple(others) for word, *others in split}


def _set(row: str) -> frozenset[str]:
    return frozenset(row.split())


_ENDINGS = {"m": ("am",), "re": ("are",), "ve": ("have",), "ll": ("will",), "d": ("would",)}
_CONTRACTING = _set(
    """
    i you he she it we they this that there here who what where when how why everything everybody everyone somebody
    someone something nobody nothing one
    """
)
_CONTRACTIONS = {
    "can't": ("can", "not"), "cannot": ("can", "not"), "won't": ("will", "not"), "shan't": ("shall", "not"),
    "let's": ("let", "us"), "gonna": ("going", "to"), "wanna": ("want", "to"), "gotta": ("got", "to"),
}  # fmt: skip

_STRONG_VERBS = _table(
    """
    arise arose arisen · awake awoke awoken · bear bore born borne · beat beaten · become became ·
    begin began begun beginning · bend bent · bet · bid bade bidden · bind bound · bite bit bitten · bleed bled ·
    blow blew blown · break broke broken · breed bred · bring brought · broadcast · build built · burst · buy bought ·
    cast · catch caught · choose chose chosen · cling clung · come came · cost · creep crept · cut · deal dealt ·
    dig dug · do does did done · draw drew drawn · drink drank drunk · drive drove driven · eat ate eaten ·
    fall fell fallen · feed fed · feel felt · fight fought · find found · flee fled · fling flung · fly flew flown ·
    forbid forbade forbidden forbidding · forecast · foresee foresaw foreseen · forget forgot forgotten forgetting ·
    forgive forgave forgiven · freeze froze frozen · get got gotten · give gave given · go went gone · grind ground ·
    grow grew grown · hang hung hanged · have has had · hear heard · hide hid hidden · hit · hold held · hurt ·
    keep kept · know knew known · lay laid · lead led · leave left · lend lent · let · lie lay lain lied · lose lost ·
    make made · mean meant · meet met · mislead misled · mistake mistook mistaken · misunderstand misunderstood ·
    outgrow outgrew outgrown · overcome overcame · overhear overheard · oversee oversaw overseen ·
    oversleep overslept · overtake overtook overtaken · overthrow overthrew overthrown · pay paid · put · quit ·
    read · rebuild rebuilt · retell retold · rewrite rewrote rewritten · ride rode ridden · ring rang rung ·
    rise rose risen · run ran · say said · see saw seen · seek sought · sell sold · send sent · set ·
    shake shook shaken · shed · shoot shot · show showed shown · shrink shrank shrunk · shut · sing sang sung ·
    sink sank sunk · sit sat · sleep slept · slide slid · slit · speak spoke spoken · spend spent · spin spun ·
    spit spat · split · spread · spring sprang sprung · stand stood · steal stole stolen · stick stuck · sting stung ·
    stink stank stunk · stride strode · strike struck stricken · string strung · swear swore sworn · sweep swept ·
    swell swelled swollen · swim swam swum · swing swung · take took taken · teach taught · tear tore torn ·
    tell told · think thought · throw threw thrown · thrust · tread trod trodden · undergo underwent undergone ·
    understand understood · undertake undertook undertaken · undo undid undone · unwind unwound · uphold upheld ·
    upset upsetting · wake woke woken waked · wear wore worn · weave wove woven · weep wept · win won ·
    wind wound winded · withdraw withdrew withdrawn · withhold withheld · withstand withstood · wring wrung ·
    write wrote written
    """
)
_COMPOUNDS = _set(
    "businessman cameraman chairman craftsman fireman fisherman freshman gentleman layman policeman postman salesman "
    "snowman spokesman sportsman statesman workman businesswoman chairwoman policewoman saleswoman spokeswoman"
)
_IRREGULAR = {
    **_STRONG_VERBS,
    **_table(
        """
        a an · be am is are was were been being · burn burnt · dream dreamt · can could · kneel knelt · lean leant ·
        leap leapt · learn learnt · light lit · prove proven · sew sewn · shine shone · smell smelt · sow sown ·
        speed sped · spell spelt · spill spilt · spoil spoilt · strive strove striven · may might · shall should ·
        will would · good better best · well better best · bad worse worst · badly worse worst ·
        far farther farthest further furthest · little less least · many more most · much more most ·
        old elder eldest · analysis analyses · basis bases · calf calves · child children · crisis crises ·
        criterion criteria · datum data · die dice · elf elves · foot feet · goose geese · grandchild grandchildren ·
        half halves · hypothesis hypotheses · knife knives · leaf leaves · life lives · loaf loaves · man men ·
        medium media · mouse mice · ox oxen · penny pence · person people · phenomenon phenomena ·
        quiz quizzes quizzed quizzing · scarf scarves · self selves · shelf shelves · stomach stomachs ·
        thesis theses · thief thieves · tooth teeth · wife wives · housewife housewives · bookshelf bookshelves ·
        wolf wolves · woman women
        """
    ),
    **{word: (word.removesuffix("an") + "en",) for word in _COMPOUNDS},
}
_STRESSED_LAST = _set(
    """
    abet abhor admit allot commit compel confer control defer deter equip excel expel extol format handicap incur
    infer kidnap occur omit outwit patrol permit prefer propel rebel rebut recur refer regret submit transfer transmit
    unplug worship zigzag
    """
)
_WITHOUT_ENDINGS = _set(
    """
    a an the i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its
    itself we us our ours ourselves they them their theirs themselves this that these those who whom whose which what
    be am is are was were been being does did done has had must can could may might shall should will would ought and
    or but nor so yet if as than because although though while when where why how until unless since at by for from in
    into of off on onto per to upon via with within without about above across after against along among around before
    behind below beneath beside between beyond during except inside out outside over past through toward towards under
    not no yes hi hey hello oh ok okay too very also just only even ever never always often here there then now again
    ago already almost maybe perhaps quite rather still together all any both each either every many much more most
    neither none some such less least
    """
)
_FALSE_FORMS = {
    word: _set(others)
    for word, others in {
        "cloth": "clothing", "fee": "feed", "good": "goods", "mr": "mrs", "new": "news", "unit": "united",
        "wed": "wedding",
    }.items()
}  # fmt: skip
_COMPARED = _set(
    """
    able angry big black blue bold brave brief bright broad brown busy calm cheap chilly clean clear clever close
    cloudy cold cool crazy cruel curly cute damp dark dear deadly deep dense dirty dry dull dusty early easy fair
    faint fancy fast fat few fine firm fit flat foggy fond free fresh friendly full funny gentle giant grand gray
    great green grey guilty handsome handy happy hard harsh healthy heavy high hot huge humble hungry icy keen kind
    large late lazy light likely lively lonely long loose loud lovely low lucky mad mean mild messy muddy naive narrow
    nasty naughty near neat new nice noble noisy odd old pale plain pleasant polite poor pretty proud pure quick quiet
    rainy rare raw ready red rich ripe risky rough rude sad safe salty scary sharp shiny short shy sick silent silly
    simple skinny sleepy slim slow small smart smooth sneaky snowy soft soon sore sour steady steep stiff strange
    strict strong stupid subtle sunny sure sweet tall tasty tender thick thin thirsty tidy tight tiny tough true ugly
    vague warm weak wealthy weird wet white wide wild windy wise worthy yellow young yummy
    """
)
