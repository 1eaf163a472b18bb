"""Languages of the text layer: function words, abbreviations, and whether a dot makes an ordinal.

Words are in small letters as the language has them (İ → i and I → ı in Turkish), abbreviations without their last dot.
"""

from __future__ import annotations

from dataclasses import dataclass

from mm_rec.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LanguageRules:
    """Rules of a language for cleaning and sentence splitting."""

    code: str
    name: str
    stop_words: frozenset[str]
    abbreviations: frozenset[str]
    closing_abbreviations: frozenset[str]
    """Those of the abbreviations that a sentence may end with: a capital after them begins the next."""
    dotted_ordinals: bool
    """Whether "19." means nineteenth."""
    foreign_letters: str = ""
    """Letters of its nearest relatives that the language itself has not."""


def get_language(code: str) -> LanguageRules:
    """Return the language of a code such as "tr"; raises ConfigError for one that is not known here."""
    if code not in _LANGUAGES:
        raise ConfigError(f"the language {code!r} is not known; known are: {', '.join(_LANGUAGES)}")
    return _LANGUAGES[code]


def _words(row: str) -> frozenset[str]:
    return frozenset(row.split())


_TURKISH = LanguageRules(
    code="tr",
    name="Turkish",
    stop_words=_words(
        """
        acaba ama ancak aslında artık ayrıca az bana bazen bazı bazıları belki ben bence benden beni benim beri bile
        bir biraz biri birkaç birçok birçoğu biz bizden bize bizi bizim böyle böylece bu buna bunda bundan bunlar
        bunları bunların bunu bunun burada buradan bütün çoğu çoğunlukla çok çünkü da daha dahi de defa değil dek
        diğer diğerleri diye dolayı dolayısıyla edilen eden eder ederek eğer elbette en etmek etti fakat falan gene
        gerek gibi göre hala hâlâ hangi hangisi hani hatta hem henüz hep hepsi her herhangi herkes hiç hiçbir hiçbiri
        için içinde ile ilgili ilk ise işte itibaren iyi kadar karşı karşın kendi kendine kendini kendisi kez ki kim
        kime kimi kimin kimse lakin madem mı mi mu mü nasıl ne neden nedeniyle nedir nerede nereden nereye neyse
        niçin niye o olan olarak oldu olduğu olduğunu olması olmak olsa olsun olup olur on ona ondan onlar onlara
        onlardan onları onların onu onun orada oysa öbür ön önce öte öyle pek rağmen sadece sana sanki sen senden
        seni senin siz sizden size sizi sizin son sonra şayet şey şeyi şeyler şimdi şöyle şu şuna şunda şundan
        şunlar şunu şunun tabii tarafından tek tüm üzere üzerinde var ve veya veyahut ya yalnız yani yapılan yerine
        yine yok yoksa zaten zira
        """
    ),
    abbreviations=_words(
        """
        dr prof doç yrd yard öğr gör arş uzm av op dt ecz müh mim alb yb bnb yzb ütğm tğm asb org korg tümg tuğg çvş onb
        sn hz st cad cd mah mh sok sk apt blv bulv no nr tel bkz bk krş örn ör yak yy çev haz yay hzl nşr trc
        s ss sf sh m md mad fık bl t.c m.ö m.s i.ö i.s a.ş a.o ltd şti san tic inş turz a.g.e a.g.m ank ist
        oca şub nis tem ağu eyl müd bşk gn fak üni ünv enst alm ing fr lat osm yun dz kv mr mrs ms vb vs vd dk
        """
    ),
    closing_abbreviations=_words("şti no dk vb vs vd"),
    dotted_ordinals=True,
    foreign_letters="qQxXäÄəƏñÑňŇţŢýÝ",  # Azerbaijani, Crimean Tatar, Gagauz, Kurdish, Salar, Turkmen, Uyghur, Uzbek
)

_ENGLISH = LanguageRules(
    code="en",
    name="English",
    stop_words=_words(
        """
        a about above after again against all almost already also although always am among an and another any anyone
        anything are around as at away be because been before being below between both but by can cannot could did do
        does doing don't down during each either else enough even ever every everyone everything few for from further
        had has have having he her here hers herself him himself his how however i i'm if in instead into is isn't it
        it's its itself just least less many may me might mine more most much must my myself neither never no nobody
        none nor not nothing now of off often on once one only onto or other others our ours ourselves out over own
        perhaps quite rather same shall she should since so some somebody someone something sometimes still such than
        that that's the their theirs them themselves then there therefore these they this those though through thus to
        together too toward towards under unless until up upon us very was we were what whatever when whenever where
        whether which while who whoever whom whose why will with within without would yes yet you your yours yourself
        yourselves
        """
    ),
    abbreviations=_words(
        """
        mr mrs ms messrs dr prof rev hon sr jr st mt ft gen col maj capt lt cmdr sgt cpl pvt gov sen rep pres supt
        e.g i.e cf viz vs ca approx ed eds trans vol vols no nos pp p ch chap sec fig figs eq eqs ref refs al etc
        jan feb apr jun jul aug sept oct nov dec ave blvd rd dept univ assn bros inc ltd co corp a.m p.m b.c a.d ph.d
        """
    ),
    closing_abbreviations=_words("no nos ft jr sr al etc inc ltd co corp a.m p.m b.c a.d ph.d"),
    dotted_ordinals=False,
)

_LANGUAGES = {known.code: known for known in (_TURKISH, _ENGLISH)}
