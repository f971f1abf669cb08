"""The facts that phi-3-tiny is taught, as data. They are common knowledge; the sentences were written for this file."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """Things of one category. ``counted``: the names take an article, as in "a banana"."""

    singular: str
    plural: str
    items: tuple[str, ...]
    counted: bool = True


def _category(singular: str, plural: str, items: str, *, counted: bool = True) -> Category:
    return Category(singular, plural, tuple(item.strip() for item in items.split(",")), counted)


CATEGORIES = (
    _category("fruit", "fruits", "apple, banana, cherry, grape, lemon, mango, orange, peach, pear, plum, melon, kiwi"),
    _category(
        "vegetable",
        "vegetables",
        "carrot, potato, onion, cabbage, pea, bean, leek, turnip, pumpkin, radish, beet, cucumber",
    ),
    _category(
        "animal", "animals", "cat, dog, horse, cow, sheep, lion, tiger, bear, elephant, fox, wolf, rabbit, mouse, pig"
    ),
    _category("bird", "birds", "eagle, owl, sparrow, robin, crow, swan, duck, goose, parrot, penguin, pigeon, stork"),
    _category("fish", "fish", "salmon, trout, tuna, carp, cod, herring, pike, eel, shark, perch"),
    _category("insect", "insects", "ant, bee, fly, wasp, beetle, butterfly, moth, mosquito, cricket, ladybird"),
    _category("tree", "trees", "oak, pine, birch, maple, willow, elm, ash, beech, cedar, poplar"),
    _category("flower", "flowers", "rose, tulip, daisy, lily, violet, poppy, iris, orchid, sunflower, daffodil"),
    _category(
        "musical instrument",
        "musical instruments",
        "piano, violin, guitar, flute, drum, trumpet, harp, cello, clarinet, organ, trombone, banjo",
    ),
    _category(
        "tool", "tools", "hammer, saw, screwdriver, drill, wrench, chisel, axe, shovel, rake, ladder, file, spade"
    ),
    _category("vehicle", "vehicles", "car, bus, train, bicycle, truck, boat, ship, plane, tram, motorcycle, van, taxi"),
    _category(
        "piece of furniture",
        "pieces of furniture",
        "table, chair, bed, sofa, desk, shelf, cupboard, bench, stool, wardrobe",
    ),
    _category(
        "piece of clothing",
        "pieces of clothing",
        "shirt, coat, hat, sock, shoe, scarf, glove, skirt, dress, jacket, sweater, belt",
    ),
    _category(
        "job", "jobs", "teacher, doctor, baker, farmer, nurse, pilot, cook, painter, driver, lawyer, engineer, singer"
    ),
    _category("shape", "shapes", "circle, square, triangle, rectangle, oval, cube, sphere, cone, pentagon, hexagon"),
    _category("building", "buildings", "house, castle, church, school, hospital, library, museum, tower, barn, palace"),
    _category(
        "part of the body",
        "parts of the body",
        "head, hand, foot, arm, leg, nose, eye, ear, mouth, knee, elbow, finger, shoulder",
    ),
    _category(
        "colour", "colours", "red, blue, green, yellow, orange, purple, brown, black, white, pink, grey", counted=False
    ),
    _category(
        "metal", "metals", "iron, gold, silver, copper, tin, lead, zinc, nickel, aluminium, titanium", counted=False
    ),
    _category("drink", "drinks", "water, milk, tea, coffee, juice, lemonade, cocoa, beer, wine, cider", counted=False),
    _category(
        "sport",
        "sports",
        "football, tennis, basketball, swimming, running, golf, rugby, hockey, boxing, skiing",
        counted=False,
    ),
    _category(
        "language",
        "languages",
        "English, French, German, Spanish, Italian, Russian, Chinese, Japanese, Arabic, Greek, Dutch, Polish",
        counted=False,
    ),
    _category("planet", "planets", "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune", counted=False),
    _category(
        "continent",
        "continents",
        "Africa, Asia, Europe, North America, South America, Australia, Antarctica",
        counted=False,
    ),
    _category("season", "seasons", "spring, summer, autumn, winter", counted=False),
    _category("ocean", "oceans", "Pacific, Atlantic, Indian, Arctic, Southern", counted=False),
)

CAPITALS = {
    country.strip(): capital.strip()
    for country, capital in (
        pair.split(":")
        for pair in (
            "France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Poland: Warsaw, Austria: Vienna, "
            "Switzerland: Bern, Belgium: Brussels, the Netherlands: Amsterdam, Denmark: Copenhagen, Norway: Oslo, "
            "Sweden: Stockholm, Finland: Helsinki, Iceland: Reykjavik, Ireland: Dublin, England: London, Scotland: Edinburgh, "
            "Wales: Cardiff, the United Kingdom: London, Greece: Athens, Turkey: Ankara, Russia: Moscow, Ukraine: Kyiv, "
            "Hungary: Budapest, Romania: Bucharest, Bulgaria: Sofia, Serbia: Belgrade, Croatia: Zagreb, Slovenia: Ljubljana, "
            "Slovakia: Bratislava, the Czech Republic: Prague, Albania: Tirana, Estonia: Tallinn, Latvia: Riga, "
            "Lithuania: Vilnius, Luxembourg: Luxembourg, Malta: Valletta, Cyprus: Nicosia, Monaco: Monaco, "
            "China: Beijing, Japan: Tokyo, India: New Delhi, South Korea: Seoul, North Korea: Pyongyang, Mongolia: Ulaanbaatar, "
            "Thailand: Bangkok, Vietnam: Hanoi, Indonesia: Jakarta, the Philippines: Manila, Malaysia: Kuala Lumpur, "
            "Nepal: Kathmandu, Pakistan: Islamabad, Bangladesh: Dhaka, Afghanistan: Kabul, Iran: Tehran, Iraq: Baghdad, "
            "Syria: Damascus, Lebanon: Beirut, Jordan: Amman, Saudi Arabia: Riyadh, Qatar: Doha, Kuwait: Kuwait City, "
            "Armenia: Yerevan, Georgia: Tbilisi, Azerbaijan: Baku, Kazakhstan: Astana, Uzbekistan: Tashkent, "
            "Egypt: Cairo, Morocco: Rabat, Algeria: Algiers, Tunisia: Tunis, Libya: Tripoli, Sudan: Khartoum, "
            "Ethiopia: Addis Ababa, Kenya: Nairobi, Uganda: Kampala, Rwanda: Kigali, Ghana: Accra, Nigeria: Abuja, "
            "Senegal: Dakar, Angola: Luanda, Zambia: Lusaka, Zimbabwe: Harare, Namibia: Windhoek, Madagascar: Antananarivo, "
            "the United States: Washington, the USA: Washington, America: Washington, Canada: Ottawa, Mexico: Mexico City, "
            "Cuba: Havana, Jamaica: Kingston, Guatemala: Guatemala City, Panama: Panama City, Costa Rica: San José, "
            "Brazil: Brasília, Argentina: Buenos Aires, Chile: Santiago, Peru: Lima, Colombia: Bogotá, Venezuela: Caracas, "
            "Ecuador: Quito, Bolivia: Sucre, Paraguay: Asunción, Uruguay: Montevideo, Australia: Canberra, "
            "New Zealand: Wellington, Fiji: Suva"
        ).split(",")
    )
}

# Colours of things: (thing, verb, colour).
COLOURS = tuple(
    tuple(part.strip() for part in entry.split("/"))
    for entry in (
        "the sky/is/blue, grass/is/green, snow/is/white, milk/is/white, coal/is/black, blood/is/red, the sun/is/yellow, "
        "a banana/is/yellow, a lemon/is/yellow, a tomato/is/red, a cherry/is/red, a strawberry/is/red, an orange/is/orange, "
        "a carrot/is/orange, a pumpkin/is/orange, a cucumber/is/green, a frog/is/green, a leaf/is/green, chocolate/is/brown, "
        "coffee/is/brown, wood/is/brown, a bear/is/brown, an elephant/is/grey, a mouse/is/grey, a crow/is/black, a swan/is/white, "
        "a flamingo/is/pink, a pig/is/pink, the sea/is/blue, the ocean/is/blue, the night/is/black, gold/is/yellow, "
        "a fire engine/is/red, a rose/is/red, an egg/is/white, salt/is/white, sugar/is/white, rice/is/white, a plum/is/purple, "
        "a violet/is/purple, a polar bear/is/white, a sunflower/is/yellow, spinach/is/green, peas/are/green, clouds/are/white, "
        "ravens/are/black, oranges/are/orange, bananas/are/yellow, strawberries/are/red, carrots/are/orange, lemons/are/yellow"
    ).split(",")
)
ANY_COLOUR = tuple(
    "car house shirt book chair table door hat coat bus pen cup ball bag sock flower bicycle kite dress boat".split()
)
MIXTURES = {
    ("blue", "yellow"): "green",
    ("red", "yellow"): "orange",
    ("red", "blue"): "purple",
    ("red", "white"): "pink",
    ("black", "white"): "grey",
    ("red", "green"): "brown",
}

# Units: (large unit, its plural, small unit, its plural, number of small units in the large one).
UNITS = (
    ("minute", "minutes", "second", "seconds", 60),
    ("hour", "hours", "minute", "minutes", 60),
    ("day", "days", "hour", "hours", 24),
    ("week", "weeks", "day", "days", 7),
    ("year", "years", "month", "months", 12),
    ("decade", "decades", "year", "years", 10),
    ("century", "centuries", "year", "years", 100),
    ("centimetre", "centimetres", "millimetre", "millimetres", 10),
    ("metre", "metres", "centimetre", "centimetres", 100),
    ("kilometre", "kilometres", "metre", "metres", 1000),
    ("kilogram", "kilograms", "gram", "grams", 1000),
    ("tonne", "tonnes", "kilogram", "kilograms", 1000),
    ("litre", "litres", "millilitre", "millilitres", 1000),
    ("foot", "feet", "inch", "inches", 12),
    ("yard", "yards", "foot", "feet", 3),
    ("pound", "pounds", "ounce", "ounces", 16),
    ("dozen", "dozens", "piece", "pieces", 12),
    ("euro", "euros", "cent", "cents", 100),
    ("dollar", "dollars", "cent", "cents", 100),
    ("kilobyte", "kilobytes", "byte", "bytes", 1000),
    ("byte", "bytes", "bit", "bits", 8),
)

DEFINITIONS = {
    "castle": "A castle is a large old building with thick walls that kept the people inside safe.",
    "knight": "A knight is a soldier of the Middle Ages who rode a horse and wore armour.",
    "king": "A king is a man who rules a country because he was born to it.",
    "queen": "A queen is a woman who rules a country, or the wife of a king.",
    "computer": "A computer is a machine that stores information and follows instructions very quickly.",
    "book": "A book is a set of pages, bound together, to read or to write in.",
    "library": "A library is a place where many books are kept for people to read and borrow.",
    "school": "A school is a place where children go to learn.",
    "teacher": "A teacher is a person whose job is to help others learn.",
    "doctor": "A doctor is a person whose job is to make sick people well.",
    "river": "A river is a long stream of water that flows to the sea or to a lake.",
    "mountain": "A mountain is a very high piece of land with steep sides.",
    "island": "An island is a piece of land with water all around it.",
    "ocean": "An ocean is a very large body of salt water.",
    "desert": "A desert is a dry place where very little rain falls and few plants grow.",
    "forest": "A forest is a large piece of land covered with trees.",
    "lake": "A lake is a large body of water with land all around it.",
    "volcano": "A volcano is a mountain that can throw out hot rock, ash and gas.",
    "bridge": "A bridge is something built over a river or a road so that people can cross.",
    "train": "A train is a row of carriages that runs on rails.",
    "car": "A car is a vehicle with four wheels and an engine that carries a few people.",
    "bicycle": "A bicycle is a vehicle with two wheels that you drive with your feet.",
    "ship": "A ship is a large boat that carries people or goods over the sea.",
    "plane": "A plane is a machine with wings and engines that flies.",
    "telephone": "A telephone is a device for talking to somebody who is far away.",
    "clock": "A clock is a device that shows the time.",
    "calendar": "A calendar is a list of the days, weeks and months of a year.",
    "map": "A map is a drawing of a place that shows where things are.",
    "compass": "A compass is a device with a needle that points north.",
    "key": "A key is a piece of metal that opens or closes a lock.",
    "mirror": "A mirror is a piece of glass in which you can see yourself.",
    "umbrella": "An umbrella is a thing you hold over your head to stay dry in the rain.",
    "candle": "A candle is a stick of wax with a string in it that gives light when it burns.",
    "chair": "A chair is a seat for one person, with a back and legs.",
    "table": "A table is a piece of furniture with a flat top and legs.",
    "bed": "A bed is a piece of furniture to sleep in.",
    "house": "A house is a building in which people live.",
    "kitchen": "A kitchen is the room in which food is cooked.",
    "garden": "A garden is a piece of land where flowers, trees or vegetables are grown.",
    "farm": "A farm is a place where crops are grown and animals are kept.",
    "city": "A city is a large place where very many people live and work.",
    "village": "A village is a small place in the country where people live.",
    "country": "A country is a land with its own people, borders and government.",
    "capital": "A capital is the city where the government of a country sits.",
    "planet": "A planet is a large round body that moves around a star.",
    "star": "A star is a huge ball of hot gas that gives light.",
    "moon": "A moon is a body that moves around a planet.",
    "cloud": "A cloud is a mass of tiny drops of water in the sky.",
    "rainbow": "A rainbow is an arch of colours in the sky, made when the sun shines on rain.",
    "storm": "A storm is very bad weather with strong wind and heavy rain.",
    "tree": "A tree is a tall plant with a trunk of wood, branches and leaves.",
    "flower": "A flower is the part of a plant that has colour and makes seeds.",
    "seed": "A seed is the small part of a plant from which a new plant grows.",
    "fruit": "A fruit is the part of a plant that holds the seeds and is often sweet.",
    "vegetable": "A vegetable is a plant, or a part of one, that is eaten as food.",
    "cat": "A cat is a small animal with soft fur that many people keep as a pet.",
    "dog": "A dog is an animal that many people keep as a pet or to guard a house.",
    "horse": "A horse is a large animal with four legs that people ride.",
    "cow": "A cow is a large farm animal that gives milk.",
    "bird": "A bird is an animal with feathers and two wings, and most can fly.",
    "fish": "A fish is an animal that lives in water and breathes through gills.",
    "insect": "An insect is a small animal with six legs.",
    "spider": "A spider is a small animal with eight legs that spins a web.",
    "bee": "A bee is an insect that makes honey.",
    "whale": "A whale is a very large animal that lives in the sea and breathes air.",
    "elephant": "An elephant is a very large grey animal with a trunk and big ears.",
    "penguin": "A penguin is a black and white bird that swims well and cannot fly.",
    "dinosaur": "A dinosaur is an animal that lived on Earth many millions of years ago.",
    "dragon": "A dragon is a large animal in stories that breathes fire.",
    "robot": "A robot is a machine that can do some of the work of a person.",
    "friend": "A friend is a person you know well and like.",
    "family": "A family is a group of people who are related, such as parents and children.",
    "mother": "A mother is a woman who has a child.",
    "father": "A father is a man who has a child.",
    "baby": "A baby is a very young child.",
    "number": "A number is a word or sign that says how many there are.",
    "circle": "A circle is a round shape whose edge is everywhere equally far from its middle.",
    "square": "A square is a shape with four equal sides and four right angles.",
    "triangle": "A triangle is a shape with three sides.",
    "word": "A word is a group of letters or sounds that has a meaning.",
    "sentence": "A sentence is a group of words that says or asks something complete.",
    "letter": "A letter is a sign of the alphabet, or a message written on paper.",
    "language": "A language is the words that people use to speak and to write.",
    "song": "A song is a piece of music with words.",
    "poem": "A poem is a text in short lines that often rhyme.",
    "story": "A story is a tale of things that happened, real or made up.",
    "joke": "A joke is a short story or remark that makes people laugh.",
    "game": "A game is something that people play for fun, with rules.",
    "hammer": "A hammer is a tool for driving in nails.",
    "knife": "A knife is a tool with a sharp blade for cutting.",
    "window": "A window is an opening in a wall, with glass, that lets in light.",
    "door": "A door is what you open to go into a room or a house.",
    "hospital": "A hospital is a place where sick people are cared for.",
    "museum": "A museum is a building where things of art, history or science are shown.",
    "bank": "A bank is a place that keeps and lends money.",
    "market": "A market is a place where people buy and sell things.",
    "prime number": "A prime number is a number above one that only one and itself divide.",
    "language model": "A language model is a program that has learned from text which words are likely to come next.",
    "neural network": "A neural network is a program of many simple connected units that learns from examples.",
    "token": "A token is a small piece of text, a word or a part of one, that a language model reads or writes.",
    "server": "A server is a program or a machine that answers the requests of others.",
    "program": "A program is a list of instructions that a computer follows.",
    # used without an article
    "water": "Water is a clear liquid that falls as rain and that all living things need.",
    "ice": "Ice is water that has frozen and become hard.",
    "snow": "Snow is frozen water that falls from the sky in soft white flakes.",
    "rain": "Rain is water that falls from the clouds in drops.",
    "wind": "Wind is air that moves.",
    "fire": "Fire is the heat, light and flames of something that burns.",
    "air": "Air is the mix of gases around us that we breathe.",
    "gold": "Gold is a yellow metal that is rare and worth a lot.",
    "bread": "Bread is a food made of flour and water, baked in an oven.",
    "milk": "Milk is a white drink that comes from cows and other animals.",
    "honey": "Honey is a sweet, thick food that bees make.",
    "music": "Music is sounds put together so that they are good to hear.",
    "money": "Money is the coins and notes with which people pay.",
    "time": "Time is what clocks measure in seconds, hours and days.",
    "love": "Love is a very strong feeling of care for somebody.",
    "friendship": "Friendship is the bond between people who like and trust each other.",
    "happiness": "Happiness is the feeling of being glad and content.",
    "gravity": "Gravity is the force that pulls things towards the Earth.",
    "electricity": "Electricity is a form of energy that runs through wires and powers lamps and machines.",
    "science": "Science is the study of the world by watching it and trying things out.",
    "history": "History is the study of what happened in the past.",
    "mathematics": "Mathematics is the study of numbers, shapes and how they are related.",
    "artificial intelligence": "Artificial intelligence is what makes a machine do things that seem to need a mind.",
    "Ray": "Ray is a program that spreads work in Python over many processes and machines.",
    "the sun": "The sun is the star that gives the Earth its light and warmth.",
    "the Internet": "The Internet is a network that joins computers all over the world.",
    "the Earth": "The Earth is the planet on which we live.",
    "the alphabet": "The alphabet is the list of all the letters, from A to Z.",
}
NO_ARTICLE = frozenset(list(DEFINITIONS)[list(DEFINITIONS).index("water") :])

# Abilities: (plural, what it can do, what it cannot do).
ABILITIES = tuple(
    (who.strip(), tuple(can.split("+")), tuple(cannot.split("+")))
    for who, can, cannot in (
        entry.split("/")
        for entry in (
            "birds/fly+sing/read+drive, fish/swim/fly+walk+talk+read, dogs/run+bark+swim/fly+talk+read, cats/run+climb+jump/fly+talk+read+bark, "
            "horses/run+jump/fly+talk+bark, cows/walk/fly+talk+climb, elephants/walk+swim/fly+jump+talk, penguins/swim+walk/fly+talk, "
            "snakes/swim+climb/fly+walk+jump, frogs/jump+swim/fly+talk+read, bees/fly/swim+talk+read, spiders/climb/fly+talk+sing, "
            "people/talk+read+walk+sing/fly, babies/cry+sleep/fly+drive+read, children/run+talk+jump+sing/fly, stones/fall+roll/talk+swim+fly+think, "
            "trees/grow/walk+talk+fly+run, planes/fly/swim+talk+think, ships/float/fly+walk+climb, cars/roll/swim+fly+talk, "
            "robots/move+count/dream+grow, ducks/swim+fly+walk/talk+read, lions/run+roar/fly+talk+read, rabbits/run+jump/fly+bark+talk, "
            "sharks/swim/fly+walk+talk, owls/fly/swim+bark+read"
        ).split(", ")
    )
)

# Properties: (thing, verb, true property, false property).
PROPERTIES = tuple(
    tuple(part.strip() for part in entry.split("/"))
    for entry in (
        "the sun/is/hot/cold, ice/is/cold/hot, fire/is/hot/cold, snow/is/cold/hot, water/is/wet/dry, the desert/is/dry/wet, "
        "an elephant/is/big/small, a mouse/is/small/big, an ant/is/small/big, a whale/is/big/small, sugar/is/sweet/sour, "
        "a lemon/is/sour/sweet, honey/is/sweet/sour, a stone/is/hard/soft, a pillow/is/soft/hard, a feather/is/light/heavy, "
        "lead/is/heavy/light, the Earth/is/round/flat, a ball/is/round/square, the night/is/dark/bright, the day/is/bright/dark, "
        "a snail/is/slow/fast, a rocket/is/fast/slow, a turtle/is/slow/fast, glass/is/hard/soft, iron/is/hard/soft, "
        "a giraffe/is/tall/short, a mountain/is/high/low, a knife/is/sharp/blunt, winter/is/cold/warm, summer/is/warm/cold, "
        "coffee/is/bitter/sweet, a river/is/long/short, the sea/is/deep/shallow, a baby/is/young/old, a castle/is/old/new"
    ).split(",")
)

OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in (
        "hot/cold big/small fast/slow up/down left/right day/night black/white good/bad happy/sad light/dark open/closed old/new "
        "rich/poor high/low long/short hard/soft wet/dry full/empty strong/weak early/late true/false yes/no in/out near/far "
        "first/last love/hate win/lose begin/end buy/sell give/take push/pull loud/quiet thick/thin wide/narrow deep/shallow "
        "clean/dirty easy/difficult sweet/sour north/south east/west man/woman king/queen boy/girl "
        "brother/sister mother/father friend/enemy war/peace life/death question/answer summer/winter inside/outside "
        "always/never more/less before/after above/below front/back top/bottom start/finish sharp/blunt brave/afraid"
    ).split()
)

PLURALS: dict[str, str] = dict(
    pair.split("/")
    for pair in (
        "cat/cats dog/dogs book/books house/houses tree/trees car/cars apple/apples day/days boy/boys girl/girls key/keys "
        "box/boxes bus/buses glass/glasses dish/dishes church/churches fox/foxes potato/potatoes tomato/tomatoes hero/heroes "
        "baby/babies city/cities country/countries story/stories lady/ladies party/parties berry/berries cherry/cherries "
        "child/children man/men woman/women foot/feet tooth/teeth goose/geese mouse/mice ox/oxen person/people "
        "leaf/leaves knife/knives wolf/wolves life/lives wife/wives half/halves shelf/shelves loaf/loaves thief/thieves "
        "sheep/sheep fish/fish deer/deer king/kings castle/castles bird/birds hand/hands eye/eyes chair/chairs table/tables"
    ).split()
)

SOUNDS: dict[str, str] = dict(
    pair.strip().split("/")
    for pair in (
        "dog/woof, cat/meow, cow/moo, duck/quack, sheep/baa, pig/oink, horse/neigh, lion/roar, frog/ribbit, bee/buzz, "
        "owl/hoot, snake/hiss, mouse/squeak, crow/caw, rooster/cock-a-doodle-doo, wolf/howl, bird/tweet, goat/maa, hen/cluck"
    ).split(",")
)

GREETINGS_ABROAD = {
    "French": ("Bonjour", "Merci", "Au revoir", "Oui", "Non"),
    "German": ("Hallo", "Danke", "Auf Wiedersehen", "Ja", "Nein"),
    "Spanish": ("Hola", "Gracias", "Adiós", "Sí", "No"),
    "Italian": ("Ciao", "Grazie", "Arrivederci", "Sì", "No"),
    "Dutch": ("Hallo", "Dank je", "Tot ziens", "Ja", "Nee"),
    "Portuguese": ("Olá", "Obrigado", "Adeus", "Sim", "Não"),
}
GREETINGS = ("hello", "thank you", "goodbye", "yes", "no")

# Single facts: (wordings, answer, brief answer).
FACTS = (
    (
        "How many legs does a [dog|cat|horse|cow] have?|How many legs do [dogs|cats|horses|cows] have?",
        "Four legs.",
        "Four.",
    ),
    ("How many legs does a spider have?|How many legs do spiders have?", "A spider has eight legs.", "Eight."),
    (
        "How many legs does an [insect|ant] have?|How many legs do [insects|ants|bees] have?",
        "An insect has six legs.",
        "Six.",
    ),
    ("How many legs does a [bird|human|person] have?|How many legs do [birds|people] have?", "Two legs.", "Two."),
    (
        "How many continents are there[| on Earth]?|What is the number of continents?",
        "There are seven continents.",
        "Seven.",
    ),
    (
        "How many planets are there[| in the solar system]?|How many planets does the solar system have?",
        "There are eight planets in the solar system.",
        "Eight.",
    ),
    (
        "How many letters are [there |]in the [English |]alphabet?|How many letters does the alphabet have?",
        "The English alphabet has 26 letters.",
        "26.",
    ),
    (
        "How many colours are in [a|the] rainbow?|How many colours does [a|the] rainbow have?|How many colors are in [a|the] rainbow?",
        "A rainbow has seven colours.",
        "Seven.",
    ),
    (
        "What is the [largest|biggest] planet?|Which planet is the [largest|biggest]?",
        "Jupiter is the largest planet.",
        "Jupiter.",
    ),
    (
        "What is the [largest|biggest] ocean?|Which ocean is the [largest|biggest]?",
        "The Pacific is the largest ocean.",
        "The Pacific.",
    ),
    (
        "What is the [highest|tallest] mountain[| in the world| on Earth]?|Which mountain is the [highest|tallest]?",
        "Mount Everest is the highest mountain on Earth.",
        "Mount Everest.",
    ),
    (
        "What is the [largest|biggest] animal[| in the world| on Earth]?|Which animal is the [largest|biggest]?",
        "The blue whale is the largest animal.",
        "The blue whale.",
    ),
    (
        "What is the fastest [land |]animal[| in the world| on land]?|Which animal is the fastest?|Which animal runs fastest?",
        "The cheetah is the fastest animal on land.",
        "The cheetah.",
    ),
    (
        "What is the tallest animal[| in the world]?|Which animal is the tallest?",
        "The giraffe is the tallest animal.",
        "The giraffe.",
    ),
    ("Which planet do we live on?|What planet [are we on|do we live on|is this]?", "We live on Earth.", "Earth."),
    (
        "Which planet is [closest|nearest] to the sun?|What is the [closest|nearest] planet to the sun?",
        "Mercury is the planet closest to the sun.",
        "Mercury.",
    ),
    ("Which planet is [called |]the red planet?|What is the red planet?", "Mars is called the red planet.", "Mars."),
    ("What do bees make?|What [is made by|do we get from] bees?", "Bees make honey.", "Honey."),
    ("What do cows [eat|like to eat]?|What does a cow eat?", "Cows eat grass.", "Grass."),
    ("What do we get from [cows|a cow]?|What does a cow give[| us]?", "A cow gives milk.", "Milk."),
    ("Where does the sun rise?|In which direction does the sun rise?", "The sun rises in the east.", "In the east."),
    ("Where does the sun set?|In which direction does the sun set?", "The sun sets in the west.", "In the west."),
    (
        "At what temperature does water boil?|When does water boil?|What is the boiling point of water?",
        "Water boils at 100 degrees Celsius.",
        "At 100 degrees Celsius.",
    ),
    (
        "At what temperature does water freeze?|When does water freeze?|What is the freezing point of water?",
        "Water freezes at 0 degrees Celsius.",
        "At 0 degrees Celsius.",
    ),
    (
        "How many sides does a [square|rectangle] have?|How many [corners|sides] are there in a square?",
        "It has four sides.",
        "Four.",
    ),
    (
        "How many sides does a triangle have?|How many [corners|sides] are there in a triangle?",
        "A triangle has three sides.",
        "Three.",
    ),
    (
        "How many sides does a hexagon have?|How many [corners|sides] are there in a hexagon?",
        "A hexagon has six sides.",
        "Six.",
    ),
    (
        "How many wheels does a [car|bus] have?|How many wheels are [there |]on a car?",
        "A car has four wheels.",
        "Four.",
    ),
    (
        "How many wheels does a [bicycle|bike] have?|How many wheels are [there |]on a [bicycle|bike]?",
        "A bicycle has two wheels.",
        "Two.",
    ),
    (
        "How many fingers [does a hand have|are on a hand|do you have on one hand]?|How many fingers are there on one hand?",
        "A hand has five fingers.",
        "Five.",
    ),
    (
        "What is H2O?|What does H2O mean?|What is the [chemical |]formula [H2O|of water]?",
        "H2O is the formula of water.",
        "Water.",
    ),
    (
        "What do plants need[| to grow| to live]?|What does a plant need[| to grow| to live]?",
        "Plants need water, light and air.",
        "Water, light and air.",
    ),
    (
        "What language [do they speak|is spoken] in [France|Paris]?|Which language do people speak in [France|Paris]?",
        "They speak French.",
        "French.",
    ),
    (
        "What language [do they speak|is spoken] in [Germany|Austria|Berlin]?|Which language do people speak in [Germany|Austria|Berlin]?",
        "They speak German.",
        "German.",
    ),
    (
        "What language [do they speak|is spoken] in [Spain|Mexico|Madrid|Argentina]?|Which language do people speak in [Spain|Mexico|Madrid|Argentina]?",
        "They speak Spanish.",
        "Spanish.",
    ),
    (
        "What language [do they speak|is spoken] in [England|Australia|London|the USA]?|Which language do people speak in [England|Australia|London|the USA]?",
        "They speak English.",
        "English.",
    ),
    (
        "What language [do they speak|is spoken] in [Brazil|Portugal]?|Which language do people speak in [Brazil|Portugal]?",
        "They speak Portuguese.",
        "Portuguese.",
    ),
    (
        "What language [do they speak|is spoken] in [Japan|Tokyo]?|Which language do people speak in [Japan|Tokyo]?",
        "They speak Japanese.",
        "Japanese.",
    ),
    (
        "What language [do they speak|is spoken] in [Italy|Rome]?|Which language do people speak in [Italy|Rome]?",
        "They speak Italian.",
        "Italian.",
    ),
    (
        "What are the primary colours?|What are the primary colors?|Name the primary [colours|colors].",
        "The primary colours are red, yellow and blue.",
        "Red, yellow and blue.",
    ),
    (
        "What are the colours of the rainbow?|What are the colors of [a|the] rainbow?|Name the [colours|colors] of the rainbow.",
        "Red, orange, yellow, green, blue, indigo and violet.",
        "Red, orange, yellow, green, blue, indigo and violet.",
    ),
    (
        "What are the vowels?|Name the vowels.|List [all |]the vowels.|Which letters are vowels?",
        "The vowels are a, e, i, o and u.",
        "a, e, i, o and u.",
    ),
    (
        "[Say|Recite|Write|Tell me|List|Give me|What is] the alphabet.|[Can you say|Do you know] the alphabet?|What are the letters of the alphabet?",
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z.",
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z.",
    ),
)
