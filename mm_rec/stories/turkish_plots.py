"""Turkish plots of the story generator: what happens, step by step, in several phrasings."""

from mm_rec.stories.patterns import Plot

PLOTS = (
    Plot(
        "lost",
        {
            "hero": "child",
            "friend": "child",
            "thing": "thing",
            "colour": "colour",
            "place": "outdoor",
            "spot": "outdoor_spot",
        },
        (
            (
                "Bir gün {hero}, {colour} {thing.own_acc} alıp {place.dat} gitti.",
                "{hero}, {colour} {thing.own_acc} çok severdi ve onu {place.dat} götürdü.",
                "Bir sabah {hero}, {colour} {thing.own} ile {place.dat} gitti.",
            ),
            ("", "Bütün sabah orada oynadı.", "Orada çok eğlendi."),
            ("Bir süre sonra {thing} kayboldu!", "Sonra {thing.own_acc} bulamadı."),
            ("{hero} çok üzüldü.", "{hero} her yere baktı ve ağlamaya başladı."),
            (
                "Arkadaşı {friend} yardım etmeye geldi.",
                '{friend}, "Üzülme, sana yardım ederim." dedi.',
                "{friend}, {hero.acc} gördü ve ona yardım etmek istedi.",
            ),
            (
                "Birlikte aradılar ve {friend}, {thing.acc} {spot} buldu.",
                "Sonunda {friend}, {colour} {thing.acc} {spot} buldu.",
            ),
            (
                "{hero} çok sevindi ve {friend.dat} teşekkür etti.",
                '{hero}, "Teşekkür ederim {friend}!" dedi.',
            ),
            ("", "O günden sonra {hero}, {thing.own_acc} hiç kaybetmedi.", "İki arkadaş gülerek eve döndü."),
        ),
    ),
    Plot(
        "sharing",
        {"hero": "child", "friend": "child", "treat": "treat", "place": "outdoor"},
        (
            (
                "{hero} {place.loc} oturmuş {treat} yiyordu.",
                "Bir gün {hero} {place.dat} giderken yanına bir {treat} aldı.",
                "{hero}, öğle yemeği için {place.dat} bir {treat} götürdü.",
            ),
            (
                "{friend} {friend.too} oradaydı ama yiyecek hiçbir şeyi yoktu.",
                "Sonra {friend} geldi ama onun hiç yiyeceği yoktu.",
            ),
            ("{friend} çok acıkmıştı.", '{friend}, "Çok acıktım." dedi.'),
            ("", "{hero} biraz düşündü.", "{hero} ona yardım etmek istedi."),
            (
                "{hero}, {treat.gen} yarısını {friend.dat} verdi.",
                "{hero} gülümsedi ve {treat.acc} {friend} ile paylaştı.",
            ),
            ("Güneşin altında birlikte yediler.", "Birlikte yediler ve uzun uzun konuştular."),
            (
                '{friend}, "Teşekkür ederim {hero}!" dedi.',
                "{friend} çok sevindi ve {hero.dat} teşekkür etti.",
            ),
            ("", "O günden sonra iyi arkadaş oldular.", "Paylaşınca {treat} daha lezzetli oldu."),
        ),
    ),
    Plot(
        "rain",
        {"hero": "child", "friend": "child", "place": "outdoor"},
        (
            (
                "{hero} ile {friend} {place.loc} oynuyordu.",
                "Bir gün {hero} ile {friend} oynamak için {place.dat} gitti.",
            ),
            (
                "Birden kara bulutlar geldi ve yağmur başladı.",
                "Sonra gökyüzü karardı ve yağmur yağmaya başladı.",
            ),
            ("{hero.gen} montu yoktu ve hemen ıslandı.", '{hero}, "Eyvah, ıslanıyoruz!" dedi.'),
            ("{friend} büyük bir ağaç gördü ve oraya koştular.", "Büyük bir ağaca koşup orada beklediler."),
            (
                "",
                "{friend} komik bir masal anlattı ve {hero} güldü.",
                "Birlikte şarkı söylediler ve hiç korkmadılar.",
            ),
            ("Az sonra yağmur durdu ve güneş çıktı.", "Bir süre sonra güneş yeniden çıktı."),
            ("Gökyüzünde güzel bir gökkuşağı gördüler.", "Gökyüzünde kocaman bir gökkuşağı vardı."),
            ("Eve ıslak ama mutlu döndüler.", "O gün haftanın en güzel günüydü.", ""),
        ),
    ),
    Plot(
        "visit",
        {
            "hero": "child",
            "elder": "relative",
            "day": "day",
            "thing": "thing",
            "colour": "colour",
            "treat": "treat",
        },
        (
            (
                "{day} günü {hero}, {elder.own_acc} görmeye gitti.",
                "{hero}, {day} günü {elder.own_acc} görmeye gitti.",
            ),
            ("Yanına hediye olarak {colour} bir {thing} aldı.", "Ona {colour} bir {thing} götürdü."),
            ("Kapıyı çaldı ama kimse açmadı.", "Kapı kapalıydı ve ev çok sessizdi."),
            ("", '{hero}, "Acaba nerede?" diye düşündü.', "{hero} biraz korktu."),
            ("Sonra bahçeden bir şarkı duydu.", "Sonra evin arkasına yürüdü."),
            ("{elder.own} bahçede çiçeklerin yanındaydı.", "{elder.own} bahçede oturuyordu."),
            (
                "{elder.own} {thing.acc} çok beğendi ve {hero.dat} bir {treat} verdi.",
                '{elder.own}, "Ne güzel bir {thing}!" dedi.',
            ),
            ("{hero} akşam gülerek eve döndü.", "O gün ikisi de çok mutlu oldu.", ""),
        ),
    ),
    Plot(
        "cooking",
        {"hero": "child", "friend": "child", "dish": "dish", "ingredient": "ingredient"},
        (
            (
                "{hero} ile {friend} {dish} yapmak istedi.",
                "Bir gün {hero} ile {friend} {dish} yapmaya başladı.",
            ),
            ("Mutfağa gidip ellerini yıkadılar.", ""),
            ("Ama mutfakta hiç {ingredient} yoktu!", '{friend}, "Eyvah, hiç {ingredient} yok!" dedi.'),
            (
                "{hero} komşuya gidip biraz {ingredient} istedi.",
                "İyi kalpli komşu onlara biraz {ingredient} verdi.",
            ),
            ("Her şeyi büyük bir kapta karıştırdılar.", "{friend} her şeyi bir kapta karıştırdı."),
            ("Az sonra bütün ev güzel koktu.", "Biraz beklediler ve {dish} hazır oldu."),
            ("{dish.acc} komşu ile paylaştılar.", "Komşuya da biraz {dish} verdiler."),
            ("{dish} herkesin çok hoşuna gitti.", "Herkes {dish.acc} çok beğendi.", ""),
        ),
    ),
    Plot(
        "race",
        {"hero": "child", "friend": "child", "place": "outdoor"},
        (
            (
                "{hero} ile {friend} {place.loc} yarıştı.",
                "Bir gün {hero} ile {friend} {place.loc} koşu yarışı yaptı.",
            ),
            ("{friend} çok hızlıydı ve öne geçti.", "Önce {friend}, {hero.abl} daha hızlı koştu."),
            ("Sonra {friend} düştü ve dizini incitti.", "Ama {friend} düştü ve ağlamaya başladı."),
            ("", "{hero} artık yarışı kazanabilirdi.", "{hero} bunu duydu ve durdu."),
            (
                "{hero} geri dönüp {friend.dat} yardım etti.",
                "{hero}, {friend.dat} elini uzattı ve onu kaldırdı.",
            ),
            ("Yarışı el ele bitirdiler.", "Yolun sonuna birlikte geldiler."),
            ("", "Herkes onlar için çok sevindi.", '{friend}, "Teşekkür ederim {hero}!" dedi.'),
            (
                '{hero}, "İyi bir arkadaş ödülden daha değerlidir." dedi.',
                "O günden sonra çok iyi arkadaş oldular.",
            ),
        ),
    ),
    Plot(
        "bedtime",
        {"hero": "child", "elder": "elder", "pet": "pet", "spot": "indoor_spot"},
        (
            (
                "Saat geç olmuştu ve {hero} yataktaydı.",
                "Bir gece {hero} uyuyamadı.",
                "Geceydi ve {hero} çok yorgundu.",
            ),
            ("{spot.abl} garip bir ses geldi.", "Birden {spot.abl} bir ses geldi."),
            ("{hero} korktu ve {elder.own_acc} çağırdı.", '{hero}, "Bu da ne?" diye düşündü.'),
            ("{elder.own} bir lamba ile gelip oraya baktı.", "{elder.own} gelip etrafa baktı."),
            ("{spot} küçük bir {pet} vardı!", "Orada yalnızca küçük bir {pet} vardı!"),
            ("", "{pet} sıcak odada uyumak istemişti.", "{pet} {pet.too} korkmuştu."),
            ("Güldüler ve {elder.own} kısa bir masal anlattı.", "{hero} ile {elder.own} güldü."),
            ("{hero} gözlerini kapatıp güzelce uyudu.", "Sonra {hero} sabaha kadar uyudu."),
        ),
    ),
    Plot(
        "hidden_pet",
        {"hero": "child", "pet": "pet", "pet_name": "pet_name", "spot": "indoor_spot"},
        (
            (
                "{hero.gen} {pet_name} adında küçük bir {pet.own} vardı.",
                "{hero}, {pet_name} adlı {pet.own_acc} çok severdi.",
            ),
            ("Her gün birlikte oynarlardı.", ""),
            ("Bir sabah {hero}, {pet_name.acc} bulamadı.", "Bir gün {pet_name} ortadan kayboldu."),
            ('{hero}, "{pet_name}, neredesin?" diye bağırdı.', "{hero} çok üzüldü ve onu çağırdı."),
            ("", "Bütün odalara baktı.", "Evin her yerini aradı."),
            ("Sonunda {pet_name.acc} {spot} buldu.", "Sonra {pet.own_acc} {spot} buldu."),
            ("{pet_name} orada rahatça uyuyordu.", "Küçük {pet} yalnızca uyuyordu."),
            ("{hero} güldü ve yeniden mutlu oldu.", "{hero} o kadar sevindi ki bir şarkı söyledi."),
        ),
    ),
    Plot(
        "birthday",
        {"hero": "child", "friend": "child", "thing": "thing", "colour": "colour"},
        (
            ("O gün {hero.gen} doğum günüydü.", "Çok güzel bir gündü, çünkü {hero.gen} doğum günüydü."),
            ("Pencerenin yanında arkadaşlarını bekledi.", "{hero} arkadaşlarını bekledi."),
            ("Ama kimse gelmedi ve {hero} üzüldü.", "Saat geç oldu ama kimse gelmedi."),
            ("Sonra biri kapıyı çaldı.", "Birden kapının arkasından bir ses geldi."),
            ("{friend} büyük bir pasta ile gelmişti.", "Gelen {friend} ile bütün arkadaşlarıydı."),
            (
                "{friend}, {hero.dat} {colour} bir {thing} verdi.",
                "{friend}, {hero.dat} hediye olarak {colour} bir {thing} verdi.",
            ),
            ('{friend}, "İyi ki doğdun {hero}!" dedi.', ""),
            ("Akşama kadar şarkı söyleyip pasta yediler.", "Bu, dünyanın en güzel doğum günüydü."),
        ),
    ),
    Plot(
        "wind",
        {
            "hero": "child",
            "thing": "light_thing",
            "colour": "colour",
            "place": "outdoor",
            "climber": "climber",
        },
        (
            (
                "Rüzgârlı bir gün {hero}, {colour} {thing.own_acc} alıp {place.dat} gitti.",
                "Rüzgârlı bir gündü ve {hero}, {colour} {thing.own} ile {place.loc} oynuyordu.",
            ),
            ("Güçlü bir rüzgâr {thing.acc} alıp götürdü.", "Birden rüzgâr {thing.acc} elinden aldı."),
            ("{thing} uçup yüksek bir ağaca takıldı.", "{thing} artık yüksek bir ağaçtaydı."),
            ("{hero} zıpladı ama ağaç çok yüksekti.", "{hero} üzüldü, ne yapacağını bilemedi."),
            ("", "{hero} ağlamaya başladı."),
            (
                "Küçük bir {climber} bunu gördü ve ağaca tırmandı.",
                "İyi kalpli bir {climber} yardım etmek için ağaca tırmandı.",
            ),
            ("{thing.acc} itti ve {thing} yere düştü.", "Az sonra {thing} yeniden {hero.gen} elindeydi."),
            (
                "{hero}, {climber.dat} teşekkür etti ve güldü.",
                "Artık {hero.gen} yeni bir arkadaşı vardı: küçük bir {climber}.",
            ),
        ),
    ),
    Plot(
        "drawing",
        {"hero": "child", "friend": "child", "animal": "drawn_animal", "colour": "odd_colour"},
        (
            ("{hero} hayvan resmi çizmeyi çok severdi.", "{hero} her gün bir hayvan resmi çizerdi."),
            ("Bir gün {colour} bir {animal} çizdi.", "Bir sabah kâğıda {colour} bir {animal} çizdi."),
            (
                '{friend}, "Dünyada {colour} {animal} yoktur." dedi.',
                "{friend}, {colour} {animal.acc} görünce güldü.",
            ),
            ("{hero} üzüldü ve resmi kaldırdı.", "{hero} çok üzüldü."),
            ("Ertesi gün öğretmen resmi gördü.", "Sonra öğretmen gelip resme baktı."),
            ('Öğretmen, "Ne güzel bir {animal}!" dedi.', "Öğretmen {colour} {animal.acc} çok beğendi."),
            ("", "Öğretmen resmi duvara astı.", "Artık herkes onu görmek istiyordu."),
            (
                "{friend} özür diledi ve birlikte bir {animal} çizdiler.",
                "{hero} mutlu oldu ve {friend} ondan özür diledi.",
            ),
        ),
    ),
    Plot(
        "snow",
        {
            "hero": "child",
            "friend": "child",
            "wear": "winter_thing",
            "colour": "colour",
            "animal": "cold_animal",
        },
        (
            ("Sabah her yer karla kaplıydı.", "Mevsim kıştı ve çok kar yağmıştı."),
            (
                "{hero} ile {friend} oynamak için dışarı çıktı.",
                "{hero}, {friend.acc} çağırdı ve dışarı çıktılar.",
            ),
            (
                "{colour} {wear.own} olan büyük bir kardan adam yaptılar.",
                "Bir kardan adam yapıp ona {colour} bir {wear} taktılar.",
            ),
            ("Sonra karda küçük bir {animal} gördüler.", "Birden {friend} küçük bir {animal} gördü."),
            ("{animal} üşümüş ve acıkmıştı.", '{friend}, "Çok üşümüş." dedi.'),
            (
                "{hero}, {animal.dat} yiyecek ve sıcak bir battaniye verdi.",
                "{animal.acc} eve götürüp ona yiyecek verdiler.",
            ),
            ("Az sonra {animal} ısındı ve mutlu oldu.", "Bir süre sonra {animal} iyileşti."),
            ("", "İki arkadaş da çok mutluydu.", "O gün kışın en güzel günüydü."),
        ),
    ),
    Plot(
        "garden",
        {"hero": "child", "elder": "elder", "crop": "crop"},
        (
            ("{hero} bahçeye küçük bir tohum ekti.", "Bir gün {hero} bir tohum buldu ve onu bahçeye ekti."),
            ("Her sabah ona su verdi.", "Ona her gün su verdi."),
            ("Ama günlerce hiçbir şey çıkmadı.", "Bekledi, bekledi ama hiçbir şey çıkmadı."),
            ('{hero}, "Bu tohum kötü." dedi.', "{hero} çok üzüldü."),
            ('{elder.own}, "Biraz beklemelisin." dedi.', "{elder.own} ona beklemesini söyledi."),
            (
                "Güneşli bir günde küçük, yeşil bir yaprak çıktı.",
                "Sonra bir sabah {hero} yeşil bir yaprak gördü.",
            ),
            ("Yazın bahçede kocaman bir {crop} vardı.", "Sonunda {hero.gen} kocaman bir {crop.own} oldu."),
            (
                "{hero}, güzel şeylerin zaman istediğini öğrendi.",
                "{hero} ile {elder.own} {crop.acc} birlikte yedi.",
            ),
        ),
    ),
    Plot(
        "new_friend",
        {"hero": "child", "friend": "child", "thing": "toy", "colour": "colour", "place": "outdoor"},
        (
            ("{hero} köyde yeniydi ve hiç arkadaşı yoktu.", "{hero.gen} yeni köyünde hiç arkadaşı yoktu."),
            ("Her gün {place.loc} tek başına oynardı.", "{place.loc} hep yalnızdı."),
            (
                "Bir gün {friend}, {colour} bir {thing} ile geldi.",
                "Bir gün {friend} geldi; elinde {colour} bir {thing} vardı.",
            ),
            ("", "{hero} {hero.too} oynamak istedi ama utandı."),
            ('{friend}, "Gel, benimle oyna!" dedi.', "{friend} gülümsedi ve {hero.acc} çağırdı."),
            ("Akşama kadar {thing} ile oynadılar.", "Bütün gün birlikte oynadılar."),
            ("{hero} artık yalnız değildi.", "Artık {hero.gen} bir arkadaşı vardı."),
            ("", "Ertesi gün {place.loc} yine buluştular."),
        ),
    ),
    Plot(
        "hungry_animal",
        {"beast": "beast", "helper": "helper", "treat": "treat", "place": "wild_place"},
        (
            (
                "Bir zamanlar {place.loc} küçük bir {beast} yaşardı.",
                "Bir zamanlar küçük bir {beast} {place.loc} yaşardı.",
            ),
            ("Bir gün acıktı ama hiç yiyeceği yoktu.", "Bir kış günü {beast} çok acıktı."),
            ("Yürüdü, yürüdü ama hiçbir şey bulamadı.", "Her yere baktı ama hiçbir şey bulamadı."),
            ("Sonra bir {helper} ile karşılaştı.", "Sonra karşısına bir {helper} çıktı."),
            (
                '{helper}, "Neden bu kadar üzgünsün?" diye sordu.',
                '{helper}, "Sana yardım edebilir miyim?" diye sordu.',
            ),
            ('{beast}, "Çok acıktım." dedi.', ""),
            (
                "{helper}, {beast.dat} bir {treat} verdi.",
                "{helper.gen} bir {treat.own} vardı ve onu paylaştı.",
            ),
            ("O günden sonra iyi arkadaş oldular.", "{beast}, {helper.dat} teşekkür etti ve çok sevindi."),
        ),
    ),
    Plot(
        "broken_toy",
        {"hero": "child", "elder": "elder", "thing": "toy", "colour": "colour"},
        (
            (
                "{hero.gen} {colour} {thing.own} bozulmuştu.",
                "Bir gün {hero.gen} {colour} {thing.own} yere düşüp bozuldu.",
            ),
            ("En çok onu severdi.", ""),
            ("{hero} bütün sabah ağladı.", "{hero} çok üzüldü ve oynamak istemedi."),
            (
                "{elder.own} gelip {thing.dat} baktı.",
                "{hero}, {thing.acc} {elder.own_dat} götürdü.",
            ),
            (
                '{elder.own}, "Onu onarabiliriz." dedi.',
                '{elder.own}, "Üzülme, sana yardım ederim." dedi.',
            ),
            ("Birlikte uzun süre çalıştılar.", "Akşama kadar birlikte çalıştılar."),
            ("Sonunda {thing} yepyeni oldu.", "Sonunda {colour} {thing} yepyeni oldu."),
            ("{hero} güldü ve {elder.own_dat} teşekkür etti.", "{hero} köyün en mutlu çocuğuydu."),
        ),
    ),
)
