"""English plots of the story generator: what happens, step by step, in several phrasings."""

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
                "One day {hero} went {place.to} with {hero.his} {colour} {thing}.",
                "{hero} loved {hero.his} {colour} {thing} and took it {place.to}.",
                "One morning {hero} took {hero.his} {colour} {thing} {place.to}.",
            ),
            ("", "{hero.he} played there all morning.", "{hero.he} had a lot of fun there."),
            ("After a while the {thing} was gone!", "Then {hero.he} could not find the {thing}."),
            ("{hero} was very sad.", "{hero} looked everywhere and began to cry."),
            (
                "{hero.his} friend {friend} came to help.",
                '"Do not cry, I will help you," said {friend}.',
                "{friend} saw {hero} and wanted to help.",
            ),
            (
                "They looked together, and {friend} found the {thing} {spot}.",
                "At last {friend} found the {colour} {thing} {spot}.",
            ),
            ("{hero} was happy again and thanked {friend}.", '"Thank you, {friend}!" said {hero}.'),
            (
                "",
                "After that {hero} took good care of the {thing}.",
                "The two friends went home with a smile.",
            ),
        ),
    ),
    Plot(
        "sharing",
        {"hero": "child", "friend": "child", "treat": "treat", "place": "outdoor"},
        (
            (
                "{hero} was sitting {place.at} with {treat.a}.",
                "One day {hero} took {treat.a} {place.to}.",
                "{hero} had {treat.a} for lunch {place.at}.",
            ),
            (
                "{friend} was there too, but {friend.he} had nothing to eat.",
                "Then {hero} saw {friend}, who had no food.",
            ),
            ("{friend} was very hungry.", '"I am so hungry," said {friend}.'),
            ("", "{hero} thought for a moment.", "{hero} wanted to help."),
            (
                "{hero} gave half of the {treat} to {friend}.",
                "{hero} smiled and shared the {treat} with {friend}.",
            ),
            ("They sat in the sun and ate together.", "They ate together and talked for a long time."),
            ('"Thank you, {hero}!" said {friend}.', "{friend} was happy and thanked {hero}."),
            (
                "",
                "From that day on they were good friends.",
                "The {treat} was better because they shared it.",
            ),
        ),
    ),
    Plot(
        "rain",
        {"hero": "child", "friend": "child", "place": "outdoor"},
        (
            (
                "{hero} and {friend} were playing {place.at}.",
                "One afternoon {hero} and {friend} went {place.to} to play.",
            ),
            (
                "Suddenly dark clouds came and it began to rain.",
                "Then the sky was dark and it began to rain.",
            ),
            ("{hero} had no coat and was soon wet.", '"Oh no, we are getting wet!" said {hero}.'),
            ("{friend} saw a big tree, and they ran to it.", "They ran to a big tree and waited there."),
            ("", "{friend} told a funny story and {hero} laughed.", "They sang a song and were not afraid."),
            ("Soon the rain stopped and the sun came out.", "After a while the sun came out again."),
            ("They saw a beautiful rainbow over {place.the}.", "There was a big rainbow in the sky."),
            ("They went home wet but happy.", "It was the best day of the week.", ""),
        ),
    ),
    Plot(
        "visit",
        {
            "hero": "child",
            "elder": "elder",
            "day": "day",
            "thing": "thing",
            "colour": "colour",
            "treat": "treat",
        },
        (
            (
                "On {day} {hero} went to visit {hero.his} {elder}.",
                "{hero} visited {hero.his} {elder} on {day}.",
            ),
            (
                "{hero.he} had {colour.a} {thing} as a gift.",
                "{hero.he} took {colour.a} {thing} with {hero.him}.",
            ),
            ("{hero} knocked on the door, but nobody came.", "The door was closed and the house was quiet."),
            ("", '"Where can {elder.he} be?" thought {hero}.', "{hero} was a little afraid."),
            ("Then {hero.he} heard a song from the garden.", "Then {hero.he} walked around the house."),
            (
                "{hero.his} {elder} was in the garden with the flowers.",
                "{hero.his} {elder} was sitting in the garden.",
            ),
            (
                "{hero.his} {elder} loved the {thing} and gave {hero} {treat.a}.",
                '"What a beautiful {thing}!" said {hero.his} {elder}.',
            ),
            ("In the evening {hero} went home with a smile.", "They were happy all day.", ""),
        ),
    ),
    Plot(
        "cooking",
        {"hero": "child", "friend": "child", "dish": "dish", "ingredient": "ingredient"},
        (
            (
                "{hero} and {friend} wanted to make {dish.a}.",
                "One day {hero} and {friend} began to make {dish.a}.",
            ),
            ("They went to the kitchen and washed their hands.", ""),
            (
                "But there was no {ingredient} in the kitchen!",
                '"Oh no, we have no {ingredient}!" said {friend}.',
            ),
            (
                "{hero} went to the neighbour and asked for some {ingredient}.",
                "The neighbour was kind and gave them some {ingredient}.",
            ),
            ("They mixed everything in a big bowl.", "{friend} mixed everything in a bowl."),
            ("Soon the whole house smelled good.", "They waited, and soon the {dish} was ready."),
            ("They shared the {dish} with the neighbour.", "They gave the neighbour some of the {dish} too."),
            ("It was the best {dish} in the world.", "Everybody loved the {dish}.", ""),
        ),
    ),
    Plot(
        "race",
        {"hero": "child", "friend": "child", "place": "outdoor"},
        (
            (
                "{hero} and {friend} had a race {place.at}.",
                "One day {hero} and {friend} ran a race {place.at}.",
            ),
            ("{friend} was very fast and ran ahead.", "At first {friend} was faster than {hero}."),
            ("Then {friend} fell and hurt {friend.his} knee.", "But {friend} fell down and began to cry."),
            ("", "{hero} could win the race now.", "{hero} heard this and stopped."),
            (
                "{hero} went back and helped {friend}.",
                "{hero} gave {friend} {hero.his} hand and helped {friend.him} up.",
            ),
            ("They walked to the end hand in hand.", "They came to the end together."),
            ("", "Everybody was happy for them.", '"Thank you, {hero}!" said {friend}.'),
            (
                '"A good friend is better than a prize," said {hero}.',
                "After that they were the best of friends.",
            ),
        ),
    ),
    Plot(
        "bedtime",
        {"hero": "child", "elder": "elder", "pet": "pet", "spot": "indoor_spot"},
        (
            (
                "It was late and {hero} was in bed.",
                "One night {hero} could not sleep.",
                "It was night and {hero} was tired.",
            ),
            ("{hero.he} heard a strange sound {spot}.", "There was a strange sound {spot}."),
            ("{hero} was afraid and called {hero.his} {elder}.", '"What is that?" thought {hero}.'),
            (
                "{hero.his} {elder} came with a lamp and looked {spot}.",
                "{hero.his} {elder} came and looked {spot}.",
            ),
            ("It was only a little {pet}!", "There was only a little {pet}!"),
            ("", "The {pet} wanted to sleep in the warm room.", "The {pet} was afraid too."),
            (
                "They laughed, and {hero.his} {elder} told a short story.",
                "{hero} and {hero.his} {elder} laughed.",
            ),
            ("{hero} closed {hero.his} eyes and slept well.", "Then {hero} slept until the morning."),
        ),
    ),
    Plot(
        "hidden_pet",
        {"hero": "child", "pet": "pet", "pet_name": "pet_name", "spot": "indoor_spot"},
        (
            ("{hero} had a little {pet} called {pet_name}.", "{hero} loved {hero.his} {pet} {pet_name}."),
            ("Every day they played together.", ""),
            ("One morning {hero} could not find {pet_name}.", "One day {pet_name} was gone."),
            ('"{pet_name}, where are you?" called {hero}.', "{hero} was very sad and called the {pet}."),
            ("", "{hero.he} looked in every room.", "{hero.he} looked everywhere in the house."),
            ("At last {hero.he} found {pet_name} {spot}.", "Then {hero.he} found the {pet} {spot}."),
            ("{pet_name} was sleeping there, warm and safe.", "The little {pet} was only sleeping."),
            ("{hero} laughed and was happy again.", "{hero} was so happy that {hero.he} sang a song."),
        ),
    ),
    Plot(
        "birthday",
        {"hero": "child", "friend": "child", "thing": "thing", "colour": "colour"},
        (
            ("It was {hero}'s birthday.", "It was a big day, because it was {hero}'s birthday."),
            (
                "{hero.he} waited by the window for {hero.his} friends.",
                "{hero} waited for {hero.his} friends.",
            ),
            ("But nobody came, and {hero} was sad.", "It was late and nobody came."),
            ("Then somebody knocked on the door.", "Suddenly there was a sound behind the door."),
            ("{friend} was there with a big cake.", "It was {friend} with all the friends."),
            ("{friend} gave {hero} {colour.a} {thing}.", "{hero} got {colour.a} {thing} from {friend}."),
            ('"Happy birthday, {hero}!" said {friend}.', ""),
            ("They sang and ate cake until the evening.", "It was the best birthday in the world."),
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
                "It was a windy day, and {hero} was {place.at} with {colour.a} {thing}.",
                "One windy day {hero} took {hero.his} {colour} {thing} {place.to}.",
            ),
            ("The wind was strong and took the {thing} away.", "Suddenly the wind took the {thing} away."),
            ("The {thing} flew up into a tall tree.", "The {thing} was now in a tall tree."),
            ("{hero} jumped, but the tree was too tall.", "{hero} was sad and did not know what to do."),
            ("", "{hero} began to cry."),
            (
                "A little {climber} saw this and climbed up the tree.",
                "A kind {climber} climbed up the tree to help.",
            ),
            (
                "It pushed the {thing}, and the {thing} fell down.",
                "Soon the {thing} was in {hero}'s hands again.",
            ),
            ("{hero} thanked the {climber} and laughed.", "Now {hero} had a new friend, a little {climber}."),
        ),
    ),
    Plot(
        "drawing",
        {"hero": "child", "friend": "child", "animal": "drawn_animal", "colour": "odd_colour"},
        (
            ("{hero} loved to draw animals.", "Every day {hero} made a picture of an animal."),
            (
                "One day {hero.he} drew {colour.a} {animal}.",
                "On the paper there was now {colour.a} {animal}.",
            ),
            (
                '"There is no {colour} {animal} in the world," said {friend}.',
                "{friend} saw the {colour} {animal} and laughed.",
            ),
            ("{hero} was sad and put the picture away.", "{hero} was very sad."),
            ("The next day the teacher saw the picture.", "Then the teacher came and saw the picture."),
            ('"What a beautiful {animal}!" said the teacher.', "The teacher loved the {colour} {animal}."),
            ("", "The teacher put the picture on the wall.", "Now everybody wanted to see it."),
            (
                "{friend} said sorry, and they drew {animal.a} together.",
                "{hero} was happy, and {friend} said sorry.",
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
            ("In the morning everything was white with snow.", "It was winter and there was a lot of snow."),
            ("{hero} and {friend} ran out to play.", "{hero} called {friend}, and they went out to play."),
            (
                "They made a big snowman with {colour.a} {wear}.",
                "They made a snowman and gave it {colour.a} {wear}.",
            ),
            ("Then they saw a little {animal} in the snow.", "Suddenly {friend} saw a little {animal}."),
            ("The {animal} was cold and hungry.", '"It is very cold," said {friend}.'),
            (
                "{hero} gave the {animal} some food and a warm blanket.",
                "They took the {animal} home and gave it food.",
            ),
            ("Soon the {animal} was warm and happy.", "After a while the {animal} was well again."),
            ("", "The two friends were happy too.", "It was the best day of the winter."),
        ),
    ),
    Plot(
        "garden",
        {"hero": "child", "elder": "elder", "crop": "crop"},
        (
            (
                "{hero} put a small seed in the garden.",
                "One day {hero} found a seed and put it in the garden.",
            ),
            ("Every morning {hero.he} gave it water.", "{hero.he} gave it water every day."),
            ("But for many days nothing came.", "{hero.he} waited and waited, but nothing came."),
            ('"The seed is bad," said {hero}.', "{hero} was sad."),
            (
                '"You must wait a little," said {hero.his} {elder}.',
                "{hero.his} {elder} told {hero.him} to wait.",
            ),
            ("One sunny day there was a little green leaf.", "Then one morning {hero} saw a green leaf."),
            (
                "In the summer there was a big {crop} in the garden.",
                "Soon {hero} had a big, beautiful {crop}.",
            ),
            (
                "{hero} learned that good things take time.",
                "{hero} and {hero.his} {elder} ate the {crop} together.",
            ),
        ),
    ),
    Plot(
        "new_friend",
        {"hero": "child", "friend": "child", "thing": "toy", "colour": "colour", "place": "outdoor"},
        (
            (
                "{hero} was new in the village and had no friends.",
                "{hero} had no friends in the new village.",
            ),
            ("Every day {hero.he} played alone {place.at}.", "{hero.he} was always alone {place.at}."),
            (
                "One day {friend} came with {colour.a} {thing}.",
                "Then {hero} saw {friend} with {colour.a} {thing}.",
            ),
            ("", "{hero} wanted to play too, but {hero.he} was shy."),
            ('"Come and play with me!" said {friend}.', "{friend} smiled and called {hero}."),
            ("They played with the {thing} until the evening.", "They played together all day."),
            ("{hero} was not alone any more.", "Now {hero} had a friend."),
            ("", "The next day they met {place.at} again."),
        ),
    ),
    Plot(
        "hungry_animal",
        {"beast": "beast", "helper": "helper", "treat": "treat", "place": "wild_place"},
        (
            (
                "Once upon a time a little {beast} lived {place.at}.",
                "There was once a little {beast} {place.at}.",
            ),
            ("One day it was hungry and had no food.", "One winter day the {beast} had nothing to eat."),
            ("It walked and walked, but found nothing.", "It looked everywhere, but found nothing."),
            ("Then it met {helper.a}.", "Then {helper.a} came along."),
            ('"Why are you so sad?" asked the {helper}.', '"Can I help you?" asked the {helper}.'),
            ('"I am very hungry," said the {beast}.', ""),
            ("The {helper} gave the {beast} {treat.a}.", "The {helper} had {treat.a} and shared it."),
            ("From that day on they were good friends.", "The {beast} thanked the {helper} and was happy."),
        ),
    ),
    Plot(
        "broken_toy",
        {"hero": "child", "elder": "elder", "thing": "toy", "colour": "colour"},
        (
            (
                "{hero}'s {colour} {thing} was broken.",
                "One day {hero}'s {colour} {thing} fell and was broken.",
            ),
            ("It was the {thing} that {hero.he} loved most.", ""),
            ("{hero} cried all morning.", "{hero} was very sad and did not want to play."),
            (
                "{hero.his} {elder} came and looked at the {thing}.",
                "{hero} took the {thing} to {hero.his} {elder}.",
            ),
            (
                '"We can make it new again," said {hero.his} {elder}.',
                '"Do not cry, I will help you," said {hero.his} {elder}.',
            ),
            ("They worked together for a long time.", "They worked on it until the evening."),
            ("Then the {thing} was as good as new.", "Soon the {colour} {thing} was new again."),
            (
                "{hero} laughed and thanked {hero.his} {elder}.",
                "{hero} was the happiest child in the village.",
            ),
        ),
    ),
)
